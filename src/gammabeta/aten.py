"""torch's own norms: where they are called, and how, so that results are right; and the steps that follow a norm.

torch's CPU kernels lose accuracy where the mean is large. In channels_last, GroupNorm computes E[x²] − E[x]² and
BatchNorm takes plain sums in float32. The backward of GroupNorm and LayerNorm subtracts sums of the mean's size, and
gradients of parameters are added up one by one. docs/conventions.md has the measurements. So on a CPU torch's ops
compute only

    RMSNorm     which torch composes of accurate elementwise operations and sums,
    LayerNorm   of x minus its means, since norm(x) = norm(x − c) for every constant c, and without parameters. Scale
                and shift follow as elementwise operations, whose gradients torch.sum adds up pairwise.

torch's op is called unchanged in graphs of standard ops (exported, traced), for subclasses of tensors, and on other
devices, where accuracy is not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gammabeta import arguments, autograd, kernels, ops
from gammabeta._torch_private import forward_mode_active
from gammabeta.activations import activate
from gammabeta.masks import expand_mask
from gammabeta.moments import statistics_dtype
from gammabeta.reference import OpFinish
from gammabeta.subclasses.parts import knows_only_torch, overrides_torch

# Up to this many values per row the sums of LayerNorm's backward are accurate enough: torch adds up each lane of a
# vector one by one. At 200,000 values a gradient that is the same everywhere loses 5 times as much as the reference.
LONGEST_ROW = 1 << 16


@dataclass(slots=True)
class Finish:
    """The steps of a norm after scale and shift: add a residual, apply an activation, set masked values to zero."""

    norm: str
    residual: Tensor | None
    activation: str | None
    slope: float
    mask: Tensor | None

    def left_to_torch(self, x: Tensor) -> bool:
        """Return whether torch's own ops may compute it; `aten.takes` says whether they are accurate.

        They may where there is no mask, and one of these holds:

            we have no kernel for the device
            a graph of standard ops is made for another program
            x is of a class that may handle only torch's ops
            there is no residual and no activation, and torch is as accurate and faster or has to differentiate it
        """
        if self.mask is not None:
            return False
        if self.norm in ("batch_norm", "layer_norm") and forward_mode_active():
            return False  # torch's ops treat mean and variance as constants in the gradient of a tangent
        if autograd.exporting() or not ops.has_kernel(x.device.type) or knows_only_torch(x):
            return True
        if self.residual is not None or self.activation is not None:
            return False
        if torch.compiler.is_compiling():  # no condition on the size: each outcome would be another graph
            return kernels.leaves_compiled_to_torch(self.norm, x) or autograd.plain_math(x)
        return kernels.leaves_to_torch(self.norm, x) or autograd.plain_math(x)

    def overridden(self, *tensors: Tensor | None) -> bool:
        """Return whether a tensor class handles torch.nn.functional itself (`__torch_function__`), and can here.

        It can where there is no residual, activation or mask, which such a class does not know.
        """
        asked = self.residual is not None or self.activation is not None or self.mask is not None
        return not asked and overrides_torch(*tensors)

    def composed(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Apply the steps by torch's elementwise operations in y's dtype, and round once.

        The result has the dtype to which `dtype`, which is that of x, and the residual promote.
        """
        if self.residual is not None:
            y = y + self.residual
            dtype = torch.promote_types(dtype, self.residual.dtype)
        if self.activation is not None:
            y = activate(y, self._activation(), self.slope)
        return y if y.dtype == dtype else y.to(dtype)

    def of_channels(self, x: Tensor, eps: float) -> OpFinish:
        """Return the arguments of an op, the mask without axis 1 of x."""
        mask = None if self.mask is None else expand_mask(self.norm, self.mask, x, 1, 2)
        return OpFinish(self.residual, mask, eps, self._activation(), self.slope)

    def of_samples(self, x: Tensor, axes: int, eps: float) -> OpFinish:
        """Return the arguments of an op, the mask without the last `axes` axes of x."""
        mask = None if self.mask is None else expand_mask(self.norm, self.mask, x, x.ndim - axes, x.ndim)
        return OpFinish(self.residual, mask, eps, self._activation(), self.slope)

    def _activation(self) -> str:
        return arguments.activation_name(self.norm, self.activation)


def as_it_is(x: Tensor) -> bool:
    """Return whether torch's op is called unchanged, with torch's accuracy."""
    if autograd.exporting() or x.device.type != "cpu":
        return True
    return knows_only_torch(x)


def takes(norm: str, x: Tensor, weight: Tensor | None, bias: Tensor | None = None, row: int = 0) -> bool:
    """Return whether torch's op can compute this, and is accurate.

    It cannot for an empty x, nor for a bias without a weight, which fails in the backward of torch's group norm.

    Args:
        row: how many values LayerNorm normalizes together.
    """
    if x.numel() == 0 or (weight is None and bias is not None):
        return False
    return as_it_is(x) or norm == "rms_norm" or (norm == "layer_norm" and row <= LONGEST_ROW)


def layer_norm(x: Tensor, normalized_shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Call torch.layer_norm; of x minus its means, where it is not called unchanged."""
    if as_it_is(x):
        return torch.layer_norm(x, normalized_shape, weight, bias, eps)
    axes = tuple(range(-len(normalized_shape), 0))
    xhat = torch.layer_norm(x - x.detach().mean(axes, keepdim=True), normalized_shape, None, None, eps)
    if weight is None:
        return xhat
    return xhat * weight if bias is None else torch.addcmul(bias, xhat, weight)


# torch.batch_norm and not torch.nn.functional.batch_norm, which would check the arguments once more.
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
    """Cast x and its parameters to one dtype, in which torch's op computes as ours do.

    It is float32 or float64; on other devices than the CPU it is x's own where all have it.

    In 16 bits torch's CPU ops keep statistics and sums in 16 bits: the gradient of LayerNorm's bias stagnates in
    bfloat16 at some hundred samples. None takes every mix of dtypes. The ops of other devices accumulate in float32.
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
    """Do the same for batch_norm, which on devices other than the CPU takes a 16-bit x with float32 parameters."""
    if x.device.type == "cpu":
        return in_one_dtype(x, *tensors)
    dtype = statistics_dtype(x.dtype)
    return [x, *(t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors)]
