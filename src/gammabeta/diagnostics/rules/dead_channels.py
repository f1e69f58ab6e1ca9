"""Channels that do not vary at all on the inputs.

What it does: Finds BatchNorms with channels whose input has the same value for all samples and positions. It is a
warning if the running variance says that they varied in training, and the filters that make them are zero. Otherwise it
is a note, once for the first such norm.

Why it matters: The filters were zeroed, by pruning for example, or an activation before the norm passes nothing. In
evaluation such a channel is the constant β − γμ/σ with the statistics of a channel that lived. In training it would be
β. `train_eval_gap` has no variance to compare there.

Example: A trained network in which two filters of eight were set to zero.

Use instead: After pruning, `gammabeta.recalibrate(model, batches)`, or remove the channels.

Evidence: tests/diagnostics/rules/test_dead_channels.py: in the flagged example the dead channels' outputs in evaluation
and in training differ by over one standard deviation; after recalibration by rounding.

Limits: Few inputs may leave a channel behind a ReLU at 0 by chance: this is the note, given from 8 samples and 64
values on. Channels whose running variance is also below ε have been dead for long: GB104 lists them. A layer whose
filters are all zero and whose statistics never moved was initialized so. Norms on the model's own inputs, where a
column may be constant, are left out.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.fixes import recalibration
from gammabeta.diagnostics.flow import layer_before
from gammabeta.diagnostics.gap import still_channels
from gammabeta.diagnostics.initial_share import initial_share
from gammabeta.diagnostics.record import Norm, Record, channels
from gammabeta.diagnostics.rule import Example, Match

severity = "warning"
sees = "D"

SAMPLES, VALUES = 8, 64  # of a channel, from which on chance is left out


def check(record: Record) -> Iterator[Match]:
    if record.given is None or record.observed is None:
        return
    behind: list[tuple[Norm, list[int]]] = []  # norms whose filters are not the reason
    for norm in record.of_kind("batch"):
        calls = record.given.get(norm.name, ())
        seen = record.observed.calls_of(norm.name)
        if len(calls) != 1 or len(seen) != 1 or not seen[0].inputs or not norm.has_statistics:
            continue
        if calls[0].samples < 2 or record.observed.maker(seen[0].inputs[0].data) is None:
            continue
        assert norm.running_var is not None
        still = still_channels(calls[0].moments).cpu()
        alive = norm.running_var.double().cpu() > (norm.eps or 0.0)
        dead = (still & alive).nonzero().flatten().tolist()
        if not dead:
            continue
        zeroed = _zeroed(layer_before(record, seen[0]), still)
        from_zero = [channel for channel in dead if bool(zeroed[channel])]
        fresh = norm.has_initial_statistics
        if from_zero and not (fresh and len(from_zero) == still.numel()):
            message = f"{_what(norm, dead)}; the filters of {len(from_zero)} of them are zero{_before(norm, dead)}"
            evidence = {"dead": len(dead), "zero filters": len(from_zero), "channels": still.numel()}
            fix = recalibration(record, norm)
            yield Match(norm.name, message, evidence, fix, severity="note" if fresh else None)
        elif not fresh and calls[0].samples >= SAMPLES and int(calls[0].moments.count.max()) >= VALUES:
            behind.append((norm, dead))
    if behind:
        norm, dead = behind[0]
        others = f"; {len(behind) - 1} more norms have such channels" if len(behind) > 1 else ""
        evidence = {"dead": len(dead), "norms": len(behind)}
        fix = Fix("look at more data: what is before these channels passes nothing on these inputs")
        yield Match(norm.name, _what(norm, dead) + _before(norm, dead) + others, evidence, fix, severity="note")


def _what(norm: Norm, dead: list[int]) -> str:
    assert norm.running_var is not None
    total = norm.running_var.numel()
    return f"{len(dead)} of {total} channels of its input do not vary on the inputs: {channels(dead)}"


def _before(norm: Norm, dead: list[int]) -> str:
    assert norm.running_var is not None
    variance = float(norm.running_var[dead].median())
    # Constant channels leave what is left of the initial variance of 1, up to float32's rounding.
    if norm.has_initial_statistics or variance <= 1.01 * (initial_share(norm) or 0.0):
        return ""
    return f"; in training they did, with a variance of {variance:.2g}"


def _zeroed(before: tuple[str, nn.Module] | None, still: Tensor) -> Tensor:
    """Return which channels' filters are zero, in the layer right before the norm."""
    weight = getattr(before[1], "weight", None) if before is not None else None
    if not isinstance(weight, Tensor) or weight.is_meta or getattr(before[1], "transposed", False):  # type: ignore[index]
        return torch.zeros(still.shape, dtype=torch.bool)
    rows = ~weight.detach().flatten(1).any(1).cpu()
    return rows if rows.shape == still.shape else torch.zeros(still.shape, dtype=torch.bool)


def flagged() -> Example:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    for _ in range(8):  # as trained before
        model(torch.randn(16, 3, 8, 8) + 2)
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter[:2] = 0
    batches = [torch.randn(16, 3, 8, 8) + 2 for _ in range(3)]
    return Example(model.eval(), where=("1",), inputs=torch.randn(16, 3, 8, 8) + 2, loader=batches)


def clean() -> Example:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    for _ in range(8):
        model(torch.randn(16, 3, 8, 8) + 2)
    return Example(model.eval(), inputs=torch.randn(16, 3, 8, 8) + 2)
