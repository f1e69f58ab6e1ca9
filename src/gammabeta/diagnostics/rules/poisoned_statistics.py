"""Running statistics that are NaN, infinite or negative.

What it does: Finds running means that are not finite and running variances that are not finite or below zero, by
channel, in models and in checkpoint files.

Why it matters: One batch with a NaN or an overflow is enough: new = 0.9·old + 0.1·NaN, and no later batch removes it.
Training goes on, since it normalizes by the batch. In evaluation the channel gives NaN, and so does everything after
it. A gradient scaler that skips a step skips the optimizer, not the forward that has moved the buffers (pytorch#90342).

Example: A channel's running mean is NaN.

Use instead: gammabeta's BatchNorm (`gammabeta.adopt(model)`): a batch that is not finite leaves its statistics
unchanged. For statistics that are already poisoned, `gammabeta.recalibrate(model, batches)`. `diagnosis.fix()` does
that on its loader; of a norm of which nothing trains it replaces only the channels that are named. Where parameters or
outputs are not finite either (GB404), that comes first: there is one finding for all norms, and no fix.

Evidence: tests/diagnostics/rules/test_poisoned_statistics.py: after one batch with a single NaN and 1,000 finite
batches, torch's layer still has a running mean of NaN, and its channel's outputs in evaluation are NaN. The adopted
layer's mean is right.

Limits: None known: such statistics are never intended.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.fixes import is_still, recalibration
from gammabeta.diagnostics.record import Norm, Record, channels, counted
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.diagnostics.rules import not_finite

severity = "error"
sees = "SF"

_AFTER = Fix(
    "mend GB404 first: with parameters or outputs that are not finite, statistics measured anew are not finite either"
)


def check(record: Record) -> Iterator[Match]:
    found = [(norm, kinds) for norm in record.norms if norm.has_statistics and (kinds := _kinds(norm))]
    if found and not_finite.spoils(record):  # one cause, which no recalibration removes
        norm, kinds = found[0]
        others = f"; and so in {counted(len(found) - 1, 'more norm')}" if len(found) > 1 else ""
        evidence = {**_sizes(kinds), "layers": [norm.name for norm, _ in found]}
        yield Match(norm.name, f"{_described(norm, kinds)}{others}", evidence, _AFTER)
        return
    for norm, kinds in found:
        fix = recalibration(record, norm, broken_only=is_still(norm))
        yield Match(norm.name, _described(norm, kinds), _sizes(kinds), fix)


def _kinds(norm: Norm) -> dict[str, list[int]]:
    """Return the channels by what is wrong with them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # A single synchronization with the device in the usual case that all is well.
    if bool((torch.isfinite(norm.running_mean) & torch.isfinite(norm.running_var) & (norm.running_var >= 0)).all()):
        return {}
    kinds = {
        "running mean NaN": norm.running_mean.isnan(),
        "running mean infinite": norm.running_mean.isinf(),
        "running variance NaN": norm.running_var.isnan(),
        "running variance infinite": norm.running_var.isinf(),
        "running variance negative": norm.running_var < 0,
    }
    return {what: _where(bad) for what, bad in kinds.items() if bool(bad.any())}


def _described(norm: Norm, kinds: dict[str, list[int]]) -> str:
    assert norm.running_mean is not None
    size = norm.running_mean.numel()
    return "; ".join(f"{what} in {len(at)} of {size} channels: {channels(at)}" for what, at in kinds.items())


def _sizes(kinds: dict[str, list[int]]) -> dict[str, int]:
    return {what: len(at) for what, at in kinds.items()}


def _where(bad: Tensor) -> list[int]:
    return bad.flatten().nonzero().flatten().tolist()


def flagged() -> Example:
    norm = nn.BatchNorm2d(8)
    assert norm.running_mean is not None
    norm.running_mean[2] = float("nan")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU()).eval()
    return Example(model, where=("1",), loader=[torch.randn(16, 3, 8, 8) for _ in range(3)])


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    return Example(model)
