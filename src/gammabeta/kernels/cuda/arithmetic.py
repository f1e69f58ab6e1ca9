"""What the Triton kernels compute with: dtypes, and moments.

    V values of a statistic in a tile   C channels in a tile; tiles are (V, C), whichever of both is contiguous
    K tiles, (K, V, C), that a thread holds at once: as many loads of each thread are in flight

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
def multiple(a, UNIT: tl.constexpr):
    """a, of which the compiler is told that it is a multiple of UNIT, a power of 2: so wide can accesses be."""
    if UNIT > 1:
        return a // UNIT * UNIT
    else:
        return a


@triton.jit
def root_reciprocal(var, EPS: tl.constexpr, DOUBLE: tl.constexpr):
    """1/√(σ² + ε). Nearly as rounded once: an approximation's error would be in all values of a statistic."""
    if DOUBLE:
        return 1.0 / tl.sqrt(var + EPS)
    else:
        # The approximation and one step of Newton's method: a sixth of the instructions of a root and a division that
        # are rounded correctly. At 0 and at infinity the step is NaN, and the approximation exact.
        v = var + EPS
        r = tl.rsqrt(v)
        rest = 1.0 - v * r * r
        return tl.where(rest == rest, r + 0.5 * r * rest, r)


# Moments of a lane: count n, and mean and m2 of deviations from a shift, a value that the lane saw.
# Deviations are as small as the spread, whatever the mean: Welford's update about zero would stop moving a large
# mean. Each lane has a shift of its own, so that one that is far off spoils the rounding of that lane alone.
# All values that a thread has loaded for a lane are one step: their own mean and m2, in two passes over registers, are
# merged with the lane's. That takes some eight instructions a value, where Welford's update takes twenty, more than a
# GPU has the time for at its bandwidth in 16 bits.


@triton.constexpr_function
def accessed_at_once(unit, contiguous):
    """How many elements that follow each other a thread loads at once: 16 bytes of the narrowest."""
    return min(unit, contiguous, 8)


@triton.jit
def in_lanes(x):
    """Σ over the values of each lane."""
    return tl.sum(tl.sum(tl.sum(x, 3, keep_dims=True), 2, keep_dims=True), 0, keep_dims=True)


@triton.jit
def largest_in_lanes(x):
    return tl.max(tl.max(tl.max(x, 3, keep_dims=True), 2, keep_dims=True), 0, keep_dims=True)


@triton.jit
def first_in_lanes(x):
    """The first value of each lane: a sum that with -0 beside it is no instruction where one thread has them all."""
    k = tl.arange(0, x.shape[0])[:, None, None, None, None] + tl.arange(0, x.shape[2])[None, None, :, None, None]
    k = k + tl.arange(0, x.shape[3])[None, None, None, :, None]
    return in_lanes(tl.where(k == 0, x, -0.0))


@triton.jit
def update_moments(lanes, x, where, EACH: tl.constexpr, DOUBLE: tl.constexpr):
    """The values x, (K, A, G, L, B), in the lanes n, shift, mean, m2, each (1, A, 1, 1, B). n is of the arithmetic's
    dtype.

    `where` is one for each lane: all its values count, or none; with EACH it is one for each value. B may be 1 in it
    and in n. What does not count is 0 in x.
    """
    n, shift, mean, m2 = lanes
    # A lane's values may be in several threads, which all have to come to the same shift: so it is a sum or a maximum.
    if EACH:
        k = in_lanes(widen(tl.where(where, 1.0, 0.0), DOUBLE))
        some = largest_in_lanes(tl.where(where, x, float("-inf")))
        shift = tl.where((k > 0) & (n == 0), some, shift)
        deviation = tl.where(where, x - shift, 0.0)
        mean_k = in_lanes(deviation) / tl.maximum(k, 1.0)
        deviation = tl.where(where, deviation - mean_k, 0.0)
    else:
        shift = tl.where(n == 0, first_in_lanes(x), shift)
        size: tl.constexpr = x.shape[0] * x.shape[2] * x.shape[3]
        k = widen(tl.where(where, size, 0), DOUBLE)
        deviation = x - shift
        mean_k = in_lanes(deviation) * (1.0 / size)
        deviation = deviation - mean_k
    m2_k = in_lanes(deviation * deviation)
    # Chan, Golub & LeVeque 1983, eq. 2.1. In this order nothing overflows where nothing counts, and k is 0.
    total = n + k
    ratio = k / tl.maximum(total, 1.0)
    apart = mean_k - mean
    step = apart * ratio
    return total, shift, mean + step, m2 + (m2_k + step * apart * n)


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
