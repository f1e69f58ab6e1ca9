"""BatchNorm forward and backward, with and without a residual and relu.

γ, β and running statistics are float32 (float64 for float64 x). For torch, residual and relu are composed after its
norm. Evaluation runs without gradients. The forward of a backward row keeps no running statistics: when compiled, each
forward would overwrite what earlier graphs hold. The least traffic counts the passes over memory that cannot be
avoided. A contiguous forward reads x once, since a channel stays in cache between statistics and output. In
channels_last it reads x twice, since every cache line has all channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gammabeta import functional
from gammabeta.benchmarks.contest import Field, Row
from gammabeta.benchmarks.ring import Inputs, Norm, norm_field
from gammabeta.moments import statistics_dtype

UNIT = "copies"

Running = tuple[Tensor, Tensor] | tuple[None, None]  # mean and variance

SHAPES = ((32, 64, 112, 112), (32, 256, 56, 56), (32, 512, 28, 28), (128, 64, 32, 32))
FEW_POSITIONS = ((32, 2048, 7, 7), (4096, 512))

# (residual and relu, backward, layout): the floor and the limit, in copies.
LIMITS = {
    (False, False, "contiguous"): (1.0, 1.3),
    (False, False, "channels_last"): (1.5, 2.0),
    (True, False, "contiguous"): (1.5, 1.9),
    (True, False, "channels_last"): (2.0, 2.5),
    (False, True, "contiguous"): (1.5, 2.0),
    (False, True, "channels_last"): (2.5, 3.0),
    (True, True, "contiguous"): (2.5, 3.2),
    (True, True, "channels_last"): (4.0, 4.5),
}
FEW_POSITIONS_LIMITS = {False: 2.0, True: 3.0}


def rows(quick: bool) -> list[Row]:
    """Return every shape and layout of the limits, then single rows beyond them; quick: the last shape only."""
    shapes = SHAPES[-1:] if quick else SHAPES
    found = []
    for (finish, backward, layout), limits in LIMITS.items():
        found += [_row(shape, layout, finish, backward, limits) for shape in shapes]
    for shape in FEW_POSITIONS[-1:] if quick else FEW_POSITIONS:
        # (N, C) has the memory layout of channels_last: every cache line has all channels.
        kin = "contiguous" if len(shape) > 2 else "channels_last"
        for backward in (False, True):
            limits = LIMITS[False, backward, kin][0], FEW_POSITIONS_LIMITS[backward]
            found.append(_row(shape, "contiguous", False, backward, limits))
    if quick:
        return found
    passes, layouts = (False, True), ("contiguous", "channels_last")
    found += [_row((32, 2048, 7, 7), "channels_last", False, backward) for backward in passes]
    found += [_row((1, 64, 224, 224), layout, False, backward) for layout in layouts for backward in passes]
    found += [_evaluation(SHAPES[1], layout, finish) for layout in layouts for finish in (False, True)]
    found += [
        _row((32, 512, 28, 28), layout, finish, backward, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float64)
        for layout, finish in (("contiguous", False), ("channels_last", False), ("contiguous", True))
        for backward in passes
    ]
    return found


def _row(
    shape: tuple[int, ...],
    layout: str,
    finish: bool,
    backward: bool,
    limits: tuple[float, float | None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Row:
    """Build a row of training; `limits` are its floor and what is allowed, by default the floor only."""
    floor, at_most = limits or (LIMITS[finish, backward, layout][0], None)
    words = "BatchNorm" + (" + residual + relu" if finish else "")

    def build(compiled: bool) -> Field:
        channels = shape[1]
        parameters = [parameter.requires_grad_() for parameter in _affine(channels, dtype)]
        inputs = Inputs(shape, dtype, layout, parameters, count=2 if finish else 1)
        ours, theirs = (by(_running(channels, dtype, not backward), True) for by in (_ours, _theirs))
        return norm_field(ours, theirs, inputs, backward=backward, compiled=compiled)

    return Row(f"{words}, {'backward' if backward else 'forward'}", shape, dtype, layout, build, floor, at_most)


def _evaluation(shape: tuple[int, ...], layout: str, finish: bool) -> Row:
    def build(compiled: bool) -> Field:
        channels = shape[1]
        parameters = _affine(channels, torch.float32)
        inputs = Inputs(shape, layout=layout, parameters=parameters, count=2 if finish else 1, gradients=False)
        ours, theirs = (by(_running(channels, torch.float32, True), False) for by in (_ours, _theirs))
        return norm_field(ours, theirs, inputs, compiled=compiled)

    words = "BatchNorm" + (" + residual + relu" if finish else "")
    return Row(f"{words}, evaluation", shape, torch.float32, layout, build, 1.5 if finish else 1.0)


def _affine(channels: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.rand(channels, generator=generator) + 0.5, torch.randn(channels, generator=generator)
    return [parameter.to(statistics_dtype(dtype)) for parameter in (weight, bias)]


def _running(channels: int, dtype: torch.dtype, tracked: bool) -> Running:
    if not tracked:
        return None, None
    return torch.zeros(channels, dtype=statistics_dtype(dtype)), torch.ones(channels, dtype=statistics_dtype(dtype))


def _ours(running: Running, training: bool) -> Norm:
    """Return our norm of x, a residual where there is one, γ and β."""
    mean, var = running

    def norm(x: Tensor, *rest: Tensor) -> Tensor:
        *residual, weight, bias = rest
        if not residual:
            return functional.batch_norm(x, mean, var, weight, bias, training)
        return functional.batch_norm(x, mean, var, weight, bias, training, residual=residual[0], activation="relu")

    return norm


def _theirs(running: Running, training: bool) -> Norm:
    mean, var = running

    def norm(x: Tensor, *rest: Tensor) -> Tensor:
        *residual, weight, bias = rest
        y = F.batch_norm(x, mean, var, weight, bias, training)
        return torch.relu(y + residual[0]) if residual else y

    return norm
