"""torch's own norms: where they are called, and how, so that results are right.

torch's kernels for the CPU lose what a large mean leaves of x: GroupNorm computes E[x²] − E[x]² in channels_last,
BatchNorm takes plain sums in float32 there, the backward of GroupNorm and LayerNorm subtracts sums of the mean's size,
and gradients of parameters are added up one by one. What was measured is in docs/conventions.md. So on a CPU torch's op
computes

    RMSNorm     which torch composes of elementwise operations and sums, and which are right,
    LayerNorm   of x less its means, norm(x) being norm(x − c) for every constant c, and without parameters: scale and
                shift follow as elementwise operations, whose gradients torch.sum adds up pairwise,

and nothing else. In graphs of standard ops (exported, traced), on other devices, where this is not measured, and for
subclasses of tensors torch's op is called as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gammabeta import autograd
from gammabeta.moments import statistics_dtype
from gammabeta.subclasses.parts import knows_only_torch

# Values of a row up to which the sums of LayerNorm's backward are good enough: torch adds up each lane of a vector one
# by one. At 200,000 values a gradient that is the same everywhere loses 5 times what the reference loses.
LONGEST_ROW = 1 << 16


def as_it_is(x: Tensor) -> bool:
    """Whether torch's op is called as it is, and its accuracy is torch's."""
    if autograd.exporting() or x.device.type != "cpu":
        return True
    return knows_only_torch(x)


def takes(norm: str, x: Tensor, weight: Tensor | None, bias: Tensor | None = None, row: int = 0) -> bool:
    """Whether torch's op does this, and right; `row`: how many values LayerNorm normalizes together.

    At all it does not what is empty, nor a bias without a weight, which fails in the backward of its group norm.
    """
    if x.numel() == 0 or (weight is None and bias is not None):
        return False
    return as_it_is(x) or norm == "rms_norm" or (norm == "layer_norm" and row <= LONGEST_ROW)


def layer_norm(x: Tensor, normalized_shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """torch.layer_norm, of x less its means where it is not called as it is."""
    if as_it_is(x):
        return torch.layer_norm(x, normalized_shape, weight, bias, eps)
    axes = tuple(range(-len(normalized_shape), 0))
    xhat = torch.layer_norm(x - x.detach().mean(axes, keepdim=True), normalized_shape, None, None, eps)
    if weight is None:
        return xhat
    return xhat * weight if bias is None else torch.addcmul(bias, xhat, weight)


# torch.batch_norm and its like rather than torch.nn.functional's: those check arguments once more, which are checked.
def batch_norm(
    x: Tensor,
    statistics: tuple[Tensor | None, Tensor | None],
    affine: Sequence[Tensor | None],
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Call torch.batch_norm. `statistics` are running mean and variance, `affine` γ and β."""
    mean, var = statistics
    weight, bias = affine
    return torch.batch_norm(x, weight, bias, mean, var, training, momentum, eps, torch.backends.cudnn.enabled)


def in_one_dtype(x: Tensor, *tensors: Tensor | None) -> list[Any]:
    """x and what goes with it in a dtype in which torch's op computes as ours do: float32 at the least.

    In 16 bits torch's ops for the CPU keep statistics and sums in 16 bits (the gradient of LayerNorm's bias stagnates
    in bfloat16 at some hundred samples), and none takes every mix of dtypes. Those for other devices accumulate in
    float32 by themselves.
    """
    if x.dtype == torch.float32:
        for t in tensors:
            if t is not None and t.dtype != torch.float32:
                break
        else:
            return [x, *tensors]
    dtype = statistics_dtype(x.dtype)
    if x.device.type != "cpu" and all(t is None or t.dtype == x.dtype for t in tensors):
        dtype = x.dtype
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in (x, *tensors)]


def for_batch_norm(x: Tensor, *tensors: Tensor | None) -> list[Any]:
    """The same for batch_norm, which on other devices than the CPU takes 16-bit x beside float32 parameters."""
    if x.device.type == "cpu":
        return in_one_dtype(x, *tensors)
    dtype = statistics_dtype(x.dtype)
    return [x, *(t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors)]
