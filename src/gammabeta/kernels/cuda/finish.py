"""What every norm does around its statistics, in Triton: scale, shift, residual, activation, and back through them.

`at` are the offsets of a tile, `where` says which of its elements exist and count. The flags are constants of the
compilation.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gammabeta.activations import CODES
from gammabeta.kernels.cuda.arithmetic import load

# The codes of the activations. `activate` and `derivative` do not compile for any other code.
NONE = tl.constexpr(CODES["none"])
RELU = tl.constexpr(CODES["relu"])
RELU6 = tl.constexpr(CODES["relu6"])
LEAKY_RELU = tl.constexpr(CODES["leaky_relu"])
SILU = tl.constexpr(CODES["silu"])
HARDSWISH = tl.constexpr(CODES["hardswish"])
GELU = tl.constexpr(CODES["gelu"])


@triton.jit
def activate(z, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """Apply the activation to z. NaN stays NaN, so comparisons select the values that are replaced."""
    if ACTIVATION == RELU:
        return tl.where(z <= 0, 0.0, z)
    elif ACTIVATION == RELU6:
        return tl.where(z <= 0, 0.0, tl.where(z >= 6, 6.0, z))
    elif ACTIVATION == LEAKY_RELU:
        return tl.where(z > 0, z, z * SLOPE)
    elif ACTIVATION == SILU:
        return z / (1.0 + tl.exp(-z))
    elif ACTIVATION == HARDSWISH:
        return z * tl.where(z <= -3, 0.0, tl.where(z >= 3, 6.0, z + 3.0)) / 6.0
    elif ACTIVATION == GELU:
        return z * (0.5 * (1.0 + tl.erf(z * 0.7071067811865476)))
    else:
        tl.static_assert(ACTIVATION == NONE, "activate: no kernel has this activation")
        return z


@triton.jit
def derivative(z, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """Compute the activation's derivative at z; at a kink the one that torch's backward takes."""
    if ACTIVATION == RELU:
        return tl.where(z <= 0, 0.0, 1.0)
    elif ACTIVATION == RELU6:
        return tl.where((z <= 0) | (z >= 6), 0.0, 1.0)
    elif ACTIVATION == LEAKY_RELU:
        # Constants of z's dtype: plain numbers would be float32.
        return tl.where(z > 0, tl.full([], 1.0, z.dtype), tl.full([], SLOPE, z.dtype))
    elif ACTIVATION == SILU:
        s = 1.0 / (1.0 + tl.exp(-z))
        return s * (1.0 + z * (1.0 - s))
    elif ACTIVATION == HARDSWISH:
        return tl.where(z <= -3, 0.0, tl.where(z < 3, z / 3.0 + 0.5, 1.0))
    else:
        tl.static_assert(ACTIVATION == GELU, "derivative: no kernel has this activation")
        density = tl.exp(-0.5 * z * z) * 0.3989422804014327
        return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * density


@triton.jit
def affine(xhat, gamma, beta, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Compute γ·x̂ + β, leaving out what is absent."""
    z = xhat
    if HAS_WEIGHT:
        z = z * gamma
    if HAS_BIAS:
        z = z + beta
    return z


@triton.jit
def load_parameters(weight, bias, at, where, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, DOUBLE: tl.constexpr):
    """Load γ and β. An absent one is 0 and never read."""
    gamma = 0.0
    beta = 0.0
    if HAS_WEIGHT:
        gamma = load(weight, at, where, DOUBLE)
    if HAS_BIAS:
        beta = load(bias, at, where, DOUBLE)
    return gamma, beta


@triton.jit
def finish(
    value, residual, at, where, statistics, parameters, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    DOUBLE: tl.constexpr,
):  # fmt: skip
    """Compute y from values of x, 0 where masked out. `statistics` are μ and 1/√(σ² + ε), `parameters` γ and β."""
    mean, rstd = statistics
    gamma, beta = parameters
    z = affine((value - mean) * rstd, gamma, beta, HAS_WEIGHT, HAS_BIAS)
    if HAS_RESIDUAL:
        z += load(residual, at, where, DOUBLE)
    z = activate(z, ACTIVATION, SLOPE)
    if HAS_MASK:
        z = tl.where(where, z, 0.0)
    return z


@triton.jit
def backward_of_finish(
    g_y, x, residual, at, where, statistics, parameters, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Compute x̂ and ∂ℓ/∂z, both 0 where nothing counts."""
    mean, rstd = statistics
    gamma, beta = parameters
    xhat = tl.where(where, (load(x, at, where, DOUBLE) - mean) * rstd, 0.0)
    g = load(g_y, at, where, DOUBLE)
    if ACTIVATION != NONE:
        z = affine(xhat, gamma, beta, HAS_WEIGHT, HAS_BIAS)
        if HAS_RESIDUAL:
            z += load(residual, at, where, DOUBLE)
        g = tl.where(where, g * derivative(z, ACTIVATION, SLOPE), 0.0)
    return xhat, g
