"""Activations in their tails, where results are subnormal, and on ordinary values.

A processor may take a hundred times as long for an operation whose result is subnormal (below 1.2e-38 in float32). Some
results truly are: silu below −87, and gelu's derivative beyond ±13. Here x is full of them, beside x within ±8. The
norm is a BatchNorm in evaluation with mean 0 and variance 1, so that x itself is the activation's argument. float16
has subnormal results below 6e-5, which every conversion to it may meet: there x is full of values that a relu passes on
as such.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gammabeta import functional
from gammabeta.benchmarks.contest import OURS, TORCH, Call, Contestant, Field, Row

UNIT = "ms"
NAMES = {OURS: "tails", TORCH: "ordinary"}

SHAPE = (16, 96, 40, 40)
AT_MOST = 1.5
# Where the results are subnormal: the range of |x|, and its sign.
TAILS = {"silu": (88.0, 100.0, -1.0), "gelu": (13.3, 14.3, -1.0)}
OF_FLOAT16 = (1e-7, 6e-5, 1.0)
_LASTS = 0.02


def rows(quick: bool) -> list[Row]:
    """Return forward and backward of each activation with tails, and of conversions to float16; quick: silu's."""
    found = [
        _row(activation, torch.float32, TAILS[activation], backward)
        for activation in (["silu"] if quick else TAILS)
        for backward in (False, True)
    ]
    return found if quick else [*found, _row("relu", torch.float16, OF_FLOAT16, False)]


def _row(activation: str, dtype: torch.dtype, tail: tuple[float, float, float], backward: bool) -> Row:
    def build(compiled: bool) -> Field:
        low, high, sign = tail
        generator = torch.Generator().manual_seed(0)
        size = torch.rand(SHAPE, generator=generator)
        ordinary = (16 * size - 8).to(dtype)
        return Field(
            {
                OURS: _contestant(((low + (high - low) * size) * sign).to(dtype), activation, backward),
                TORCH: _contestant(torch.where(ordinary.abs() < 1e-3, 1.0, ordinary), activation, backward),
            }
        )

    name = f"{activation}, {'backward' if backward else 'forward'}"
    return Row(name, SHAPE, dtype, "contiguous", build, at_most_of_torch=AT_MOST, lasts=_LASTS)


def _contestant(x: Tensor, activation: str, backward: bool) -> Contestant:
    mean, var = torch.zeros(SHAPE[1]), torch.ones(SHAPE[1])
    x.requires_grad_(backward)

    def forward() -> Tensor:
        return functional.batch_norm(x, mean, var, None, None, False, activation=activation)

    timed: Call = forward
    if backward:
        y, gradient = forward(), torch.ones_like(x)
        timed = lambda: torch.autograd.grad(y, x, gradient, retain_graph=True)  # noqa: E731
    return lambda number: timed
