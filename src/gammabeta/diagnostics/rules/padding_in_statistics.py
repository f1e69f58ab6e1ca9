"""Padded positions that enter the statistics of a norm.

What it does: Infers from the inputs where sequences end: zeros up to the end of the axis, starting at different places
in different samples. It then compares the statistics that each norm takes over positions with and without the padded
ones. Those norms are BatchNorm, InstanceNorm, GroupNorm, and LayerNorm over several axes. It reports norms whose mean
the padding moves by a twentieth of a standard deviation, or whose variance by a tenth.

Why it matters: The statistics then include the padding, and change with how much of it a sample or a batch happens to
have. The same sequence gets a different output when it is padded further (pytorch#70529, pytorch/audio#4205). With a
BatchNorm, evaluation also differs from training.

Example: A BatchNorm1d on padded sequences of 5 to 20 steps.

Use instead: `norm(x, mask=gammabeta.lengths_to_mask(lengths, L))` of an adopted layer: padding enters no statistic and
is zero in the output. Or LayerNorm over the channels, which looks at one position.

Evidence: tests/diagnostics/rules/test_probed_rules.py: more padding moves the flagged example's output by at least a
tenth of its size, the clean one's by rounding. It moves a GroupNorm's output as much.

Limits: Padding is recognized by zeros in the inputs, which may be floats (N, L, C) or (N, C, L), or tokens (N, L). The
norm's input must have exactly one axis of the same length: after downsampling nothing is found. Silence at the end of a
recording looks the same. RMSNorm over several axes is not looked at.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.fixes import advised
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.layers.batch_norm import BatchNorm1d
from gammabeta.masks import lengths_to_mask

severity = "warning"
sees = "D"

SHIFT, RATIO = 0.05, 1.1


def check(record: Record) -> Iterator[Match]:
    if record.probe is None:
        return
    for norm in record.of_kind("batch", "instance", "group", "layer"):
        padding = record.probe.padding.get(norm.name)
        if padding is None or norm.frozen:
            continue
        apart = max(padding.variance_ratio, 1 / max(padding.variance_ratio, 1e-12))
        if padding.mean_shift < SHIFT and apart < RATIO:
            continue
        message = (
            f"{padding.share:.0%} of its positions are padding: they move the mean by {padding.mean_shift:.2f} "
            f"standard deviations and multiply the variance by {padding.variance_ratio:.2f}"
        )
        evidence = {
            "share": padding.share,
            "mean_shift": padding.mean_shift,
            "variance_ratio": padding.variance_ratio,
        }
        cure = "gammabeta.adopt(model{where}), then call the layer with mask=gammabeta.lengths_to_mask(lengths, L)"
        if norm.kind == "layer":
            cure = "normalize over the channels only, at each position: nn.LayerNorm(C) on x.movedim(1, -1)"
        fix = advised(record, norm, cure)
        yield Match(norm.name, message, evidence, fix)


def sequences() -> Tensor:
    """Return padded sequences, (8, 16, 20): 5 to 20 steps of mean 1, then zeros."""
    torch.manual_seed(0)
    x = torch.randn(8, 16, 20) + 1
    return x * lengths_to_mask([20, 5, 8, 12, 6, 17, 10, 7], 20)[:, None]


def flagged() -> Example:
    model = nn.Sequential(nn.Conv1d(16, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU())
    return Example(model, where=("1",), inputs=sequences())


def clean() -> Example:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(16, 16, 3, padding=1), BatchNorm1d(16)

        def forward(self, x: Tensor, mask: Tensor) -> Any:
            return torch.relu(self.norm(self.conv(x), mask=mask))

    mask = lengths_to_mask([20, 5, 8, 12, 6, 17, 10, 7], 20)
    return Example(Masked(), inputs=(sequences(), mask))
