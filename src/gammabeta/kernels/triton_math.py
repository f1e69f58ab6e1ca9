"""What the Triton kernels compute with: dtypes, and moments.

    V values of a statistic in a tile   C channels in a tile; tiles are (V, C), whichever of both is contiguous

Arithmetic is float32, float64 where DOUBLE. Parameters of kernels in capitals are constants of a compilation.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widen(x, DOUBLE: tl.constexpr):
    """x in the dtype of the arithmetic."""
    if DOUBLE:
        if x.dtype.primitive_bitwidth == 16:
            x = x.to(tl.float32)
        return x.to(tl.float64)
    else:
        return x.to(tl.float32)


@triton.jit
def load(pointer, offsets, where, DOUBLE: tl.constexpr):
    """Values, 0 elsewhere, in the dtype of the arithmetic."""
    return widen(tl.load(pointer + offsets, mask=where, other=0.0), DOUBLE)


@triton.jit
def store(pointer, offsets, x, where):
    """Values in the dtype of what is pointed to, rounded to the nearest; from float64 to 16 bits through float32."""
    if pointer.dtype.element_ty.primitive_bitwidth == 16:
        x = x.to(tl.float32)
    tl.store(pointer + offsets, x.to(pointer.dtype.element_ty), mask=where)


@triton.jit
def root_reciprocal(var, EPS: tl.constexpr, DOUBLE: tl.constexpr):
    """1/√(σ² + ε). Rounded correctly: an approximation's error would be in all values of a statistic."""
    if DOUBLE:
        return 1.0 / tl.sqrt(var + EPS)
    else:
        return tl.div_rn(1.0, tl.sqrt_rn(var + EPS))


# Moments of a lane: count n, and mean and m2 of deviations from a shift, the first value that the lane saw.
# Deviations are as small as the spread, whatever the mean: Welford's update about zero would stop moving a large
# mean. Each lane has a shift of its own, so that one that is far off spoils the rounding of that lane alone.


@triton.jit
def update_moments(n, mean, m2, deviation, where, reciprocal):
    """One more value in every lane where `where`; `reciprocal` of the count with it."""
    delta = tl.where(where, deviation - mean, 0.0)
    mean += delta * reciprocal
    m2 += delta * tl.where(where, deviation - mean, 0.0)
    return n + tl.where(where, 1, 0), mean, m2


@triton.jit
def merge_lanes(n, shift, mean, m2, AXIS: tl.constexpr):
    """All lanes along an axis as one: its n, shift, mean and m2. Chan, Golub & LeVeque 1983, eq. 2.1 for many at
    once."""
    weight = n.to(mean.dtype)
    total = tl.sum(n, AXIS, keep_dims=True)
    divisor = tl.maximum(total, 1).to(mean.dtype)
    base = tl.sum(weight * shift, AXIS, keep_dims=True) / divisor  # amid the shifts, and need not be more exact
    mean = tl.where(n > 0, (shift - base) + mean, 0.0)
    of_all = tl.sum(weight * mean, AXIS, keep_dims=True) / divisor
    apart = tl.where(n > 0, mean - of_all, 0.0)
    correction = tl.sum(weight * apart, AXIS, keep_dims=True) / divisor
    apart = tl.where(n > 0, apart - correction, 0.0)
    m2 = tl.sum(m2 + weight * apart * apart, AXIS, keep_dims=True)
    return total, base, of_all + correction, m2
