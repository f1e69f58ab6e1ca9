"""The arithmetic of the Triton kernels: dtypes and moments.

    V  values of a statistic in a tile
    C  channels in a tile; a tile is (V, C), whichever of the two is contiguous
    K  tiles, (K, V, C), that a thread holds at once: that many of its loads are in flight

Arithmetic is float32, or float64 where DOUBLE. Capitals in a kernel's parameters are constants of the compilation.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widen(x, DOUBLE: tl.constexpr):
    """Convert x to the dtype of the arithmetic."""
    if DOUBLE:
        if x.dtype.primitive_bitwidth == 16:
            x = x.to(tl.float32)
        return x.to(tl.float64)
    else:
        return x.to(tl.float32)


@triton.jit
def load(pointer, offsets, where, DOUBLE: tl.constexpr):
    """Load values where `where` holds, 0 elsewhere, in the dtype of the arithmetic."""
    return widen(tl.load(pointer + offsets, mask=where, other=0.0), DOUBLE)


@triton.jit
def store(pointer, offsets, x, where):
    """Store values in the dtype of the pointer, rounded to nearest; from float64 to 16 bits through float32."""
    if pointer.dtype.element_ty.primitive_bitwidth == 16:
        x = x.to(tl.float32)
    tl.store(pointer + offsets, x.to(pointer.dtype.element_ty), mask=where)


@triton.jit
def multiple(a, UNIT: tl.constexpr):
    """Return a, telling the compiler that it is a multiple of UNIT, a power of 2: that wide can accesses be."""
    if UNIT > 1:
        return a // UNIT * UNIT
    else:
        return a


@triton.jit
def root_reciprocal(var, EPS: tl.constexpr, DOUBLE: tl.constexpr):
    """Compute 1/√(σ² + ε) with nearly one rounding. The error of an approximation would affect all values."""
    if DOUBLE:
        return 1.0 / tl.sqrt(var + EPS)
    else:
        # The approximation and one step of Newton's method take a sixth of the instructions of a correctly rounded root
        # and division. At 0 and at infinity the step is NaN and the approximation exact.
        v = var + EPS
        r = tl.rsqrt(v)
        rest = 1.0 - v * r * r
        return tl.where(rest == rest, r + 0.5 * r * rest, r)


# Moments of a lane: count n, and mean and m2 of deviations from a shift, which is a value that the lane saw. Deviations
# are as small as the spread, whatever the mean is. Welford's update from zero would stop moving a large mean. Each lane
# has its own shift, so that an outlier affects the rounding of that lane only. All values that a thread has loaded for
# a lane are one step: their mean and m2, taken in two passes over registers, are merged with the lane's. That takes
# some 8 instructions per value. Welford's update takes 20, for which a GPU has no time at its bandwidth in 16 bits.


@triton.constexpr_function
def accessed_at_once(unit, contiguous):
    """Return how many consecutive elements a thread loads at once: 16 bytes of the narrowest dtype."""
    return min(unit, contiguous, 8)


@triton.jit
def in_lanes(x):
    """Sum over the values of each lane."""
    return tl.sum(tl.sum(tl.sum(x, 3, keep_dims=True), 2, keep_dims=True), 0, keep_dims=True)


@triton.jit
def largest_in_lanes(x):
    """Return the largest value of each lane."""
    return tl.max(tl.max(tl.max(x, 3, keep_dims=True), 2, keep_dims=True), 0, keep_dims=True)


@triton.jit
def first_in_lanes(x):
    """Return the first value of each lane. A sum with -0 for the others, free where one thread has the whole lane."""
    k = tl.arange(0, x.shape[0])[:, None, None, None, None] + tl.arange(0, x.shape[2])[None, None, :, None, None]
    k = k + tl.arange(0, x.shape[3])[None, None, None, :, None]
    return in_lanes(tl.where(k == 0, x, -0.0))


@triton.jit
def update_moments(lanes, x, where, EACH: tl.constexpr, DOUBLE: tl.constexpr):
    """Merge the values x, (K, A, G, L, B), into the lanes n, shift, mean, m2, each (1, A, 1, 1, B).

    `where` has one value for each lane, whose values then all count or none; with EACH it has one for each value. B may
    be 1 in `where` and in n. Values that do not count are 0 in x. n has the arithmetic's dtype.
    """
    n, shift, mean, m2 = lanes
    # A lane's values may be in several threads, which must agree on the shift. So it is a sum or a maximum.
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
    # Chan, Golub & LeVeque 1983, eq. 2.1. In this order nothing overflows where nothing counts and k is 0.
    total = n + k
    ratio = k / tl.maximum(total, 1.0)
    distance = mean_k - mean
    step = distance * ratio
    return total, shift, mean + step, m2 + (m2_k + step * distance * n)


@triton.jit
def merge_lanes(n, shift, mean, m2, AXIS: tl.constexpr):
    """Merge all lanes along an axis into one n, shift, mean and m2 (Chan, Golub & LeVeque 1983, eq. 2.1)."""
    weight = n.to(mean.dtype)
    total = tl.sum(n, AXIS, keep_dims=True)
    divisor = tl.maximum(total, 1).to(mean.dtype)
    base = tl.sum(weight * shift, AXIS, keep_dims=True) / divisor  # among the shifts; it need not be exact
    mean = tl.where(n > 0, (shift - base) + mean, 0.0)
    mean_of_all = tl.sum(weight * mean, AXIS, keep_dims=True) / divisor
    distance = tl.where(n > 0, mean - mean_of_all, 0.0)
    correction = tl.sum(weight * distance, AXIS, keep_dims=True) / divisor
    distance = tl.where(n > 0, distance - correction, 0.0)
    m2 = tl.sum(m2 + weight * distance * distance, AXIS, keep_dims=True)
    return total, base, mean_of_all + correction, m2
