"""Whole calls of layers on small inputs, where Python and torch's dispatcher cost more than the arithmetic.

A timing repeats the call on one input for some milliseconds. A step is forward and backward, to x and the parameters.
Further down, inputs grow to sizes where the arithmetic matters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gammabeta.benchmarks.contest import Field, Row
from gammabeta.benchmarks.ring import layer_field
from gammabeta.layers.batch_norm import BatchNorm1d, BatchNorm2d
from gammabeta.layers.group_norm import GroupNorm
from gammabeta.layers.instance_norm import InstanceNorm1d
from gammabeta.layers.layer_norm import LayerNorm
from gammabeta.layers.rms_norm import RMSNorm

UNIT = "µs"

LASTS = 2e-3  # seconds per timing
AT_MOST_OF_TORCH = 1.5  # a call on the smallest inputs
PHASES = ("forward in training", "evaluation", "step")

Case = tuple[str, Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...], int]


class Composed(nn.Module):
    """torch's norm, then the sum, then the activation, as in a residual block."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.norm(x) + residual)


# Name; ours; torch's; shape of x; number of such tensors that forward takes.
SMALLEST: tuple[Case, ...] = (
    ("BatchNorm1d", lambda: BatchNorm1d(16), lambda: nn.BatchNorm1d(16), (8, 16), 1),
    ("LayerNorm", lambda: LayerNorm(16), lambda: nn.LayerNorm(16), (8, 16), 1),
    ("RMSNorm", lambda: RMSNorm(16), lambda: nn.RMSNorm(16), (8, 16), 1),
    ("GroupNorm", lambda: GroupNorm(4, 16), lambda: nn.GroupNorm(4, 16), (8, 16), 1),
    ("InstanceNorm1d", lambda: InstanceNorm1d(16), lambda: nn.InstanceNorm1d(16), (8, 16, 4), 1),
    (
        "BatchNorm2d + residual + relu",
        lambda: BatchNorm2d(16, activation="relu"),
        lambda: Composed(nn.BatchNorm2d(16)),
        (8, 16, 1, 1),
        2,
    ),
)
LARGER: tuple[Case, ...] = (
    *(
        ("BatchNorm2d", lambda: BatchNorm2d(64), lambda: nn.BatchNorm2d(64), (n, 64, side, side), 1)
        for n, side in ((1, 7), (8, 7), (8, 14), (32, 28))
    ),
    *(
        (
            "BatchNorm2d + residual + relu",
            lambda: BatchNorm2d(64, activation="relu"),
            lambda: Composed(nn.BatchNorm2d(64)),
            (n, 64, side, side),
            2,
        )
        for n, side in ((8, 7), (32, 28))
    ),
    *(("LayerNorm", lambda: LayerNorm(256), lambda: nn.LayerNorm(256), (n, 256), 1) for n in (1, 32, 512, 2048)),
    *(("RMSNorm", lambda: RMSNorm(256), lambda: nn.RMSNorm(256), (n, 256), 1) for n in (1, 32, 512, 2048)),
    *(
        ("GroupNorm", lambda: GroupNorm(8, 64), lambda: nn.GroupNorm(8, 64), (n, 64, side, side), 1)
        for n, side in ((1, 7), (8, 14), (32, 28))
    ),
)


def rows(quick: bool) -> list[Row]:
    """Return the smallest inputs, whose calls have a limit, then larger ones; quick: only the smallest."""
    found = [_row(case, phase, phase != "step") for case in SMALLEST for phase in PHASES]
    return found if quick else found + [_row(case, phase, False) for case in LARGER for phase in PHASES]


def _row(case: Case, phase: str, limited: bool) -> Row:
    name, ours, theirs, shape, inputs = case

    def build(compiled: bool) -> Field:
        return layer_field(ours(), theirs(), shape, inputs, phase, compiled)

    return Row(
        f"{name}, {phase}",
        shape,
        torch.float32,
        "contiguous",
        build,
        at_most_of_torch=AT_MOST_OF_TORCH if limited else None,
        lasts=LASTS,
    )
