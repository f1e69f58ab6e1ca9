"""A BatchNorm that in evaluation still normalizes by the batch, or by statistics that no longer move.

What it does: Finds BatchNorms without running statistics. As a warning, finds those whose `track_running_stats` was
switched off after construction: training then leaves the buffers unchanged, and evaluation goes on using them. Given
inputs, also finds layers with a forward of their own whose output in evaluation has a gradient across samples.

Why it matters: Without running statistics, the output for one sample depends on which others share its batch. Results
change with batch size and order, a batch of one gives zeros or an error, and one user's data shows in another's result.
A layer that is switched off afterwards normalizes by the batch in training, and in evaluation by the distribution at
the time it was switched off (pytorch#37823).

Example: `nn.BatchNorm2d(8, track_running_stats=False)`.

Use instead: Running statistics. For a model that has none, they are attached and estimated from data: given `loader=`,
`diagnosis.fix(keep_checkpoints=False)` does both. It is left to you because the state_dict gets new keys, which
checkpoints from before lack. Or a norm that looks at one sample: `GroupNorm`. A norm of which nothing trains, frozen by
`track_running_stats = False` as Lightning's `BaseFinetuning` does, keeps its statistics and is frozen by
`gammabeta.freeze`, so that training uses them too.

Evidence: tests/diagnostics/rules/test_batch_dependent_inference.py: exchanging a sample's three companions, of 6 × 6
positions each, moves its output by 0.1 of its standard deviation, and after the fix only by rounding. claim batch_noise
measures how the effect falls with the batch size.

Limits: Batch statistics at test time may be intended: image translation with batches of one, transductive few-shot
learning, adaptation to new domains. A norm without running statistics of which nothing trains is left to a person:
statistics that training moves would thaw it. One that is frozen and stays in evaluation while the rest of the model
trains, as in Lightning's finetuning, is not found.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.fixes import First, advised, freezing, is_still, recalibration
from gammabeta.diagnostics.optimized import OptimizedAround
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.surgery.change import Change, transaction

severity = "error"
sees = "SD"

LEAST = 1e-6  # rounding in float32
_OWN = Fix("its own forward uses the batch's statistics: let it use the running ones in evaluation")


def check(record: Record) -> Iterator[Match]:
    for norm in record.of_kind("batch"):
        module: Any = norm.module
        shown = _across(record, norm)
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            if shown is not None and shown > LEAST:
                yield Match(norm.name, _message(shown), {"companions": shown}, _OWN)
            continue
        if module.running_mean is None and module.running_var is None:
            message = "it has no running statistics: it normalizes by the batch in evaluation too"
            evidence = {} if shown is None else {"companions": shown}
            yield Match(norm.name, message, evidence, _fix(record, norm))
        elif not module.track_running_stats and not norm.frozen:
            if _is_still(record, norm) and not norm.training and record.model is not None and record.model.training:
                continue  # it is kept in evaluation while the rest trains, as Lightning's finetuning does
            message = "track_running_stats is off although it has running statistics: "
            if _is_still(record, norm):
                message += "nothing of it trains, yet training normalizes by the batch; evaluation uses the statistics"
            else:
                message += "training leaves them unchanged, and evaluation uses them"
            yield Match(norm.name, message, {"batches": norm.batches}, _fix(record, norm), severity="warning")
        elif shown is not None and shown > LEAST:
            yield Match(norm.name, _message(shown), {"companions": shown}, _OWN)


def _is_still(record: Record, norm: Norm) -> bool:
    """Whether nothing of the norm trains: it requires no gradient, or the optimizers leave it out."""
    left_out = record.model is not None and bool(record.optimizers) and OptimizedAround(record).is_left_out(norm)
    return is_still(norm) or left_out


def _across(record: Record, norm: Norm) -> float | None:
    """Return the share of a sample's gradient in evaluation that goes to the other samples of its batch."""
    seen = record.probe.companions.get(norm.name) if record.probe is not None else None
    return None if seen is None else seen.evaluation


def _message(shown: float) -> str:
    return (
        f"in evaluation {shown:.0%} of a sample's gradient goes to the other samples of its batch, although it has "
        "running statistics"
    )


def _fix(record: Record, norm: Norm) -> Fix:
    without = norm.running_mean is None
    if _is_still(record, norm) and without:
        return advised(
            record,
            norm,
            "attach running statistics, then gammabeta.recalibrate(model, batches{where})",
            "gammabeta.freeze(model{where}), if it is to stay frozen",
        )
    if _is_still(record, norm) and record.model is not None:
        return freezing(record.model, norm)
    what = "attach running statistics" if without else "track_running_stats = True"
    attach = partial(_attach, record, norm)
    if _is_among_new(record, norm):
        return Fix(what, attach, keeps_checkpoints=not without)
    return recalibration(record, norm, first=First(what, attach, keeps_checkpoints=not without))


def _is_among_new(record: Record, norm: Norm) -> bool:
    """Return whether training has moved no running statistics so far, neither this norm's nor any other's.

    Then training will collect them all. New statistics for only this norm would look like the trace of a training
    that the others lost.
    """
    others = [other for other in record.of_kind("batch") if other.has_statistics and other.name != norm.name]
    own = norm.running_mean is None or norm.has_initial_statistics
    return own and bool(others) and all(other.has_initial_statistics for other in others)


def _attach(record: Record, norm: Norm) -> Change:
    module: Any = norm.module
    assert record.model is not None
    with transaction("attach") as change:
        change.set_attribute(module, "track_running_stats", True, norm.name)
        if norm.running_mean is None:
            like = module.weight if module.weight is not None else next(record.model.parameters(), torch.empty(0))
            size, device = module.num_features, like.device
            dtype = torch.promote_types(like.dtype, torch.float32)
            change.set_buffer(module, "running_mean", torch.zeros(size, device=device, dtype=dtype))
            change.set_buffer(module, "running_var", torch.ones(size, device=device, dtype=dtype))
            change.set_buffer(module, "num_batches_tracked", torch.zeros((), device=device, dtype=torch.int64))
        change.note(norm.name, "has running statistics that training moves")
    return change


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU())
    loader = [torch.randn(16, 3, 8, 8) for _ in range(4)]
    return Example(model.eval(), where=("1",), loader=loader)


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model.eval())
