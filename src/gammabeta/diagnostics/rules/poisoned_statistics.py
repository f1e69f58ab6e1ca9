"""Running statistics that are NaN, infinite or negative.

What it does: Finds running means that are not finite and running variances that are not finite or below zero, by
channel, in models and in checkpoint files.

Why it matters: One batch with a NaN or an overflow is enough: new = 0.9·old + 0.1·NaN, and no later batch takes it out
again. Training goes on, since it normalizes by the batch; in evaluation the channel gives NaN, and so does everything
after it. A skipped step of a gradient scaler skips the optimizer, not the forward that has moved the buffers
(pytorch#90342).

Example: A channel's running mean is NaN.

Use instead: gammabeta's BatchNorm (`gammabeta.adopt(model)`), where a batch that is not finite leaves the statistics as
they are; for the present ones `gammabeta.recalibrate(model, batches)`.

Evidence: tests/diagnostics/rules/test_poisoned_statistics.py: after one batch with a single NaN and 1,000 finite ones
the running mean of torch's layer is NaN still, and all of its channel's outputs in evaluation; the adopted layer's is
right.

Limits: None known: such statistics are never meant.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.fixes import recalibration
from gammabeta.diagnostics.record import Record, channels
from gammabeta.diagnostics.rule import Example, Match

severity = "error"
sees = "SF"


def check(record: Record) -> Iterator[Match]:
    for norm in record.norms:
        if not norm.has_statistics:
            continue
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # One look in the usual case that all is well.
        if bool((torch.isfinite(norm.running_mean) & torch.isfinite(norm.running_var) & (norm.running_var >= 0)).all()):
            continue
        kinds = {
            "running mean NaN": norm.running_mean.isnan(),
            "running mean infinite": norm.running_mean.isinf(),
            "running variance NaN": norm.running_var.isnan(),
            "running variance infinite": norm.running_var.isinf(),
            "running variance negative": norm.running_var < 0,
        }
        found = {what: _where(bad) for what, bad in kinds.items() if bool(bad.any())}
        size = norm.running_mean.numel()
        said = "; ".join(f"{what} in {len(at)} of {size} channels: {channels(at)}" for what, at in found.items())
        yield Match(
            norm.name,
            said,
            {what: len(at) for what, at in found.items()},
            recalibration(record, norm),
        )


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
