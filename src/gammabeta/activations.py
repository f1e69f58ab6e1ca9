"""The activations that a norm can carry: one table, which everything else reads.

An activation is computed at z = γ·x̂ + β + residual. All are elementwise and keep shape and dtype.

To add one, add a row to `TABLE`. The default implementations of the ops then have it. The kernels do not: they raise
until they have it too. C++ lists its names in `kernels/cpu/checks.h`, which `kernels/__init__.py` compares with this
table when the extension is loaded. Triton takes its codes from `CODES` (`kernels/cuda/finish.py`) and refuses to
compile for a code that it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Activation:
    """An activation: what it computes, and what of torch's computes the same.

    Attributes:
        name: what users and op schemas call it.
        function: of z and the slope for z ≤ 0, which only leaky_relu uses.
        derivative: by z, of z and the slope. At a kink it is the one that torch's backward takes.
        modules: torch's classes that compute it. An instance may have settings that change it (`nn.GELU.approximate`).
        other_modules: names of other libraries' classes that compute it.
        exact_gradient: whether the derivative is 0 or 1, so that multiplying a gradient by it rounds nothing.
    """

    name: str
    function: Callable[[Tensor, float], Tensor]
    derivative: Callable[[Tensor, float], Tensor]
    modules: tuple[type[nn.Module], ...] = ()
    other_modules: tuple[str, ...] = ()
    exact_gradient: bool = False


def _none(z: Tensor, slope: float) -> Tensor:
    return z


def _none_derivative(z: Tensor, slope: float) -> Tensor:
    return torch.ones_like(z)


def _relu(z: Tensor, slope: float) -> Tensor:
    return F.relu(z)


def _relu_derivative(z: Tensor, slope: float) -> Tensor:
    return torch.where(z <= 0, torch.zeros_like(z), torch.ones_like(z))


def _relu6(z: Tensor, slope: float) -> Tensor:
    return F.relu6(z)


def _relu6_derivative(z: Tensor, slope: float) -> Tensor:
    return torch.where((z <= 0) | (z >= 6), torch.zeros_like(z), torch.ones_like(z))


def _leaky_relu(z: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(z, slope)


def _leaky_relu_derivative(z: Tensor, slope: float) -> Tensor:
    one = torch.ones_like(z)
    return torch.where(z > 0, one, slope * one)


def _silu(z: Tensor, slope: float) -> Tensor:
    return F.silu(z)


def _silu_derivative(z: Tensor, slope: float) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _hardswish(z: Tensor, slope: float) -> Tensor:
    return F.hardswish(z)


def _hardswish_derivative(z: Tensor, slope: float) -> Tensor:
    one, zero = torch.ones_like(z), torch.zeros_like(z)
    return torch.where(z <= -3, zero, torch.where(z < 3, z / 3 + 0.5, one))


def _gelu(z: Tensor, slope: float) -> Tensor:
    """z·Φ(z), the exact one."""
    return F.gelu(z)


def _gelu_derivative(z: Tensor, slope: float) -> Tensor:
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density


TABLE: dict[str, Activation] = {
    row.name: row
    for row in (
        Activation("none", _none, _none_derivative, (nn.Identity,), exact_gradient=True),
        Activation("relu", _relu, _relu_derivative, (nn.ReLU,), exact_gradient=True),
        Activation("relu6", _relu6, _relu6_derivative, (nn.ReLU6,), exact_gradient=True),
        Activation("leaky_relu", _leaky_relu, _leaky_relu_derivative, (nn.LeakyReLU,)),
        Activation("silu", _silu, _silu_derivative, (nn.SiLU,), ("Swish",)),  # timm's
        Activation("hardswish", _hardswish, _hardswish_derivative, (nn.Hardswish,)),
        Activation("gelu", _gelu, _gelu_derivative, (nn.GELU,)),
    )
}
"""By name, in the order that `CODES` numbers them."""

ACTIVATIONS = tuple(TABLE)
"""The names in op schemas. "none" is no activation; users pass None for it."""

CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
"""The number by which a kernel is compiled for an activation."""

MODULES: dict[type[nn.Module], str] = {module: row.name for row in TABLE.values() for module in row.modules}
"""The activation's name by the exact class of torch's module; a subclass may compute more."""


def activate(z: Tensor, activation: str, slope: float) -> Tensor:
    """Compute the activation of that name at `z`. gelu is the exact one, z·Φ(z); `slope` is leaky_relu's for z ≤ 0."""
    return TABLE[activation].function(z, slope)


def derivative(z: Tensor, activation: str, slope: float) -> Tensor:
    """Compute the activation's derivative at `z`; at a kink the one that torch's backward takes."""
    return TABLE[activation].derivative(z, slope)
