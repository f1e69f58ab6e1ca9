"""The activations that a norm can carry, and their derivatives.

`z` is what goes in: norm(x) + residual. All are elementwise and keep shape and dtype.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("none", "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu")


def activate(z: Tensor, activation: str, slope: float) -> Tensor:
    """The activation of that name at `z`; gelu is the exact one, z·Φ(z); `slope` is leaky_relu's for z ≤ 0."""
    match activation:
        case "none":
            return z
        case "relu":
            return F.relu(z)
        case "relu6":
            return F.relu6(z)
        case "leaky_relu":
            return F.leaky_relu(z, slope)
        case "silu":
            return F.silu(z)
        case "hardswish":
            return F.hardswish(z)
        case "gelu":
            return F.gelu(z)
    raise AssertionError(activation)


def derivative(z: Tensor, activation: str, slope: float) -> Tensor:
    """The activation's derivative at `z`, at a kink the one that torch's backward takes."""
    one, zero = torch.ones_like(z), torch.zeros_like(z)
    match activation:
        case "none":
            return one
        case "relu":
            return torch.where(z > 0, one, zero)
        case "relu6":
            return torch.where((z > 0) & (z < 6), one, zero)
        case "leaky_relu":
            return torch.where(z > 0, one, slope * one)
        case "silu":
            s = torch.sigmoid(z)
            return s * (1 + z * (1 - s))
        case "hardswish":
            return torch.where(z <= -3, zero, torch.where(z < 3, z / 3 + 0.5, one))
        case "gelu":
            density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
            return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density
    raise AssertionError(activation)
