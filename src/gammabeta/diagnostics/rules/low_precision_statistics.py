"""Running statistics kept in 16 bits.

What it does: Finds running means and variances in bfloat16 or float16: a warning for layers that will move them, a note
in evaluation and in checkpoints.

Why it matters: The average moves by momentum·(batch − running). A step below half a unit in the last place of the
running value is rounded away, and the average stands still however long training goes on. bfloat16's unit is 1/128 to
1/256 of the value: at a momentum of 0.1 the average stops some 2 to 4 % from the truth. A float16 variance ends at
65,504.

Example: `model.bfloat16()` in training.

Use instead: Norms in float32. `gammabeta.adopt(model)` before the cast keeps statistics and affine parameters in
float32, and accepts mixed inputs as they are.

Evidence: tests/diagnostics/rules/test_low_precision_statistics.py: from 1.00 towards batches of variance 1.03, a
bfloat16 average has not moved after 300 batches; a float32 one is at 1.03.

Limits: In evaluation nothing moves. Rounding then costs 2⁻⁹ of a variance in bfloat16, which is a note.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.fixes import at_each
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.introspection.norms import is_ours
from gammabeta.layers.batch_norm import _BatchNorm
from gammabeta.surgery.adopt import adopt_module
from gammabeta.surgery.change import Change, transaction

severity = "warning"
sees = "SF"

_LOW = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def check(record: Record) -> Iterator[Match]:
    for norm in record.norms:
        dtype = next(
            (t.dtype for t in (norm.running_mean, norm.running_var) if t is not None and t.dtype in _LOW), None
        )
        if dtype is None:
            continue
        moving = norm.tracks and norm.training
        share = 0.1 if norm.momentum is None else norm.momentum
        stalls = torch.finfo(dtype).eps / 2 / share if share else float("inf")
        consequence = (
            f"a batch within {stalls:.2%} of the running value leaves it unchanged"
            if moving
            else "training would stall"
        )
        yield Match(
            norm.name,
            f"running statistics in {_LOW[dtype]}: {consequence}",
            {"dtype": _LOW[dtype], "stalls within": stalls},
            _fix(norm),
            severity=None if moving else "note",
        )


def _fix(norm: Norm) -> Fix:
    module = norm.module
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return at_each(
            "norm = model.get_submodule({name}); norm.running_mean = norm.running_mean.float(); "
            "norm.running_var = norm.running_var.float()",
            "norm.running_mean = norm.running_mean.float(); norm.running_var = norm.running_var.float() for each norm",
            norm.name,
        )
    return Fix(
        f"gammabeta.adopt(model, where={norm.name!r}), and cast its buffers to float32",
        partial(_cast, norm.name, module),
    )


def _cast(where: str, module: nn.Module) -> Change:
    """Cast running statistics to float32, in a layer of gammabeta's.

    gammabeta's layer accepts statistics of another dtype than γ, β and x; torch's does not accept every mixture.
    """
    with transaction("float32 statistics") as change:
        if not is_ours(module) and not adopt_module(change, where, module):
            return change
        assert isinstance(module, _BatchNorm)
        for key in ("running_mean", "running_var"):
            change.set_buffer(module, key, module._buffers[key].float())  # type: ignore[union-attr]
        change.note(where, "running statistics in float32")
    return change


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).bfloat16()
    return Example(model, where=("1",))


def clean() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).bfloat16()
    model[1].float()
    return Example(model)
