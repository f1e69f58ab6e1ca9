"""The Triton kernels of the channel norms, for both layouts.

x is (O, V, C): outer samples, values of a channel in one of them, channels, each with a stride.

- Positions contiguous: O = N, V = S, and the stride of the values is 1.
- Channels contiguous (channels_last): the N·S rows are cut into blocks, which take the place of samples, and the stride
  of the channels is 1.

A tile is (K, V, C): the same values of K consecutive outer samples. Tiles are numbered along the values first, and a
program takes a run of tiles for one block of channels. All tensors of x's shape have x's layout, each its own dtype.
The mask is (O, V).
"""

from __future__ import annotations

import triton
import triton.language as tl

from gammabeta.kernels.cuda.arithmetic import (
    accessed_at_once,
    load,
    merge_lanes,
    multiple,
    root_reciprocal,
    store,
    update_moments,
    widen,
)
from gammabeta.kernels.cuda.finish import backward_of_finish, finish, load_parameters


@triton.jit
def shape_of(
    values, v_tiles, all_values, outer_stride, value_stride, channel_stride, channels, UNIT: tl.constexpr,
    LAST: tl.constexpr,
):  # fmt: skip
    """Pack the shape of x. LAST: channels are contiguous. All strides but that of size 1 are multiples of UNIT."""
    if LAST:
        channels = multiple(channels, UNIT)
        value_stride = multiple(value_stride, UNIT)
    else:
        values = multiple(values, UNIT)
        channel_stride = multiple(channel_stride, UNIT)
    return values, v_tiles, all_values, multiple(outer_stride, UNIT), value_stride, channel_stride, channels


@triton.jit
def place(t, c0, shape, K: tl.constexpr, V: tl.constexpr):
    """Return where tile t begins in x, and the index of its first value within a sample and among all."""
    values, v_tiles, _, outer_stride, value_stride, channel_stride, _ = shape
    outer = (t // v_tiles).to(tl.int64) * K
    v0 = (t % v_tiles).to(tl.int64) * V
    begin = outer * outer_stride + v0 * value_stride + c0.to(tl.int64) * channel_stride
    return begin, v0, outer * values + v0


@triton.jit
def offsets(shape, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr):
    """Return the offsets of a tile's elements from where it begins."""
    _, _, _, outer_stride, value_stride, channel_stride, _ = shape
    k = tl.arange(0, K)[:, None, None].to(tl.int64)
    return k * outer_stride + tl.arange(0, V)[None, :, None] * value_stride + channel_of(0, C) * channel_stride


@triton.jit
def channel_of(c0, C: tl.constexpr):
    """Return the channels of a tile, (1, 1, C)."""
    return c0 + tl.arange(0, C)[None, None, :]


@triton.jit
def counts(mask, v0, at, v, of_all, shape, HAS_MASK: tl.constexpr):
    """Return which values of a tile exist and which count, by their indices within a sample and among all."""
    there = (v0 + v < shape[0]) & (of_all < shape[2] - at)
    if HAS_MASK:
        return there, there & (tl.load(mask + at + of_all, mask=there, other=0) != 0)
    else:
        return there, there


@triton.jit
def values_of(shape, K: tl.constexpr, V: tl.constexpr):
    """Return a tile's indices from its first value: within a sample, (1, V, 1), and among all, (K, V, 1)."""
    v = tl.arange(0, V)[None, :, None]
    return v, tl.arange(0, K)[:, None, None].to(tl.int64) * shape[0] + v


@triton.jit
def moments_of_tiles(
    x, mask, first, full, last, shape, c0, HAS_MASK: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr,
    LAST: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Compute n, shift, mean and m2, (1, 1, 1) or (1, 1, C), of the tiles from first to last. The first `full` tiles of
    all have all their K samples."""
    values = shape[0]
    value_stride = shape[4]
    # Tiles are flat here, with K beside the axis that is not contiguous. Then no version of the compiler distributes K
    # over threads, and one thread has all that a lane gets at once. With positions contiguous that includes the G
    # values of an access: they belong to one channel, and either all exist or none.
    G: tl.constexpr = 1 if LAST else accessed_at_once(UNIT, V)
    LANES: tl.constexpr = (K, V, 1, 1, C) if LAST else (1, V // G, G, K, C)
    if LAST:
        row = tl.arange(0, K * V)[:, None]
        c = tl.arange(0, C)[None, :]
        v = row % V
        of_all = row
        local = row * value_stride + c * shape[5]
        lane_v = tl.arange(0, V)[None, :, None, None, None]
        lane_of_all = tl.arange(0, K)[:, None, None, None, None] * V + lane_v
    else:
        column = tl.arange(0, K * C)[None, :]
        c = column % C
        v = tl.arange(0, V)[:, None]
        k = (column // C).to(tl.int64)
        of_all = k * values + v
        local = k * shape[3] + v * value_stride + c * shape[5]
        lane_v = tl.arange(0, V // G)[None, :, None, None, None] * G
        lane_of_all = lane_v + tl.arange(0, G)[None, None, :, None, None]
        lane_of_all = tl.arange(0, K)[None, None, None, :, None].to(tl.int64) * values + lane_of_all
    in_channels = c0 + c < shape[6]
    zero = widen(tl.zeros([1, V // G, 1, 1, C], tl.float32), DOUBLE)
    n = widen(tl.zeros([1, V // G, 1, 1, 1], tl.float32), DOUBLE)
    lanes = (n, zero, zero, zero)
    if not HAS_MASK:
        for t in range(first, tl.minimum(full, last)):
            begin, v0, at = place(t, c0, shape, K, V)
            value = load(x + begin, local, (v0 + v < values) & in_channels, DOUBLE)
            lanes = update_moments(lanes, tl.reshape(value, LANES), v0 + lane_v < values, False, DOUBLE)
        first = tl.maximum(first, full)
    for t in range(first, last):
        begin, v0, at = place(t, c0, shape, K, V)
        where = counts(mask, v0, at, v, of_all, shape, HAS_MASK)[1]
        value = load(x + begin, local, where & in_channels, DOUBLE)
        where = counts(mask, v0, at, lane_v, lane_of_all, shape, HAS_MASK)[1]
        lanes = update_moments(lanes, tl.reshape(value, LANES), where, True, DOUBLE)
    n, shift, mean, m2 = lanes
    n, shift, mean, m2 = merge_lanes(n.to(tl.int32), shift, mean, m2, 1)
    n = tl.reshape(n, (1, 1, 1))
    return n, tl.reshape(shift, (1, 1, C)), tl.reshape(mean, (1, 1, C)), tl.reshape(m2, (1, 1, C))


@triton.jit
def normalize_tiles(
    x, y, residual, mask, statistics, parameters, first, last, shape, c0, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr, DOUBLE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write y of the tiles from first to last."""
    local = offsets(shape, K, V, C)
    v, of_all = values_of(shape, K, V)
    in_channels = channel_of(c0, C) < shape[6]
    for t in range(first, last):
        begin, v0, at = place(t, c0, shape, K, V)
        there, where = counts(mask, v0, at, v, of_all, shape, HAS_MASK)
        there, where = there & in_channels, where & in_channels
        z = finish(
            load(x + begin, local, where, DOUBLE), residual, begin + local, where, statistics, parameters, HAS_WEIGHT,
            HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE,
        )  # fmt: skip
        store(y, begin + local, z, there)


@triton.jit
def sums_of_tiles(
    g_y, x, residual, mask, g_residual, statistics, parameters, first, last, shape, c0, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, STORE_G: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Compute Σ∂ℓ/∂z and Σx̂·∂ℓ/∂z, each (1, 1, C). With STORE_G, ∂ℓ/∂z is written too."""
    local = offsets(shape, K, V, C)
    v, of_all = values_of(shape, K, V)
    in_channels = channel_of(c0, C) < shape[6]
    sum_g = widen(tl.zeros([1, V, C], tl.float32), DOUBLE)
    sum_g_xhat = sum_g
    for t in range(first, last):
        begin, v0, at = place(t, c0, shape, K, V)
        there, where = counts(mask, v0, at, v, of_all, shape, HAS_MASK)
        there, where = there & in_channels, where & in_channels
        xhat, g = backward_of_finish(
            g_y, x, residual, begin + local, where, statistics, parameters, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL,
            ACTIVATION, SLOPE, DOUBLE,
        )  # fmt: skip
        if STORE_G:
            store(g_residual, begin + local, g, there)
        sum_g += tl.sum(g, 0, keep_dims=True)
        sum_g_xhat += tl.sum(g * xhat, 0, keep_dims=True)
    return tl.sum(sum_g, 1, keep_dims=True), tl.sum(sum_g_xhat, 1, keep_dims=True)


@triton.jit
def differentiate_tiles(
    g_y, x, residual, mask, g_x, g_residual, statistics, parameters, means, first, last, shape, c0,
    CONSTANT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_MASK: tl.constexpr, STORE_G: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write ∂ℓ/∂x of the tiles, with STORE_G also ∂ℓ/∂z. `means`: of ∂ℓ/∂z and x̂·∂ℓ/∂z, unless CONSTANT."""
    mean_g, mean_g_xhat = means
    scale = statistics[1]
    if HAS_WEIGHT:
        scale = scale * parameters[0]
    local = offsets(shape, K, V, C)
    v, of_all = values_of(shape, K, V)
    in_channels = channel_of(c0, C) < shape[6]
    for t in range(first, last):
        begin, v0, at = place(t, c0, shape, K, V)
        there, where = counts(mask, v0, at, v, of_all, shape, HAS_MASK)
        there, where = there & in_channels, where & in_channels
        xhat, g = backward_of_finish(
            g_y, x, residual, begin + local, where, statistics, parameters, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL,
            ACTIVATION, SLOPE, DOUBLE,
        )  # fmt: skip
        if STORE_G:
            store(g_residual, begin + local, g, there)
        if not CONSTANT:
            g = g - mean_g - xhat * mean_g_xhat
        g = g * scale
        if HAS_MASK:
            g = tl.where(where, g, 0.0)
        store(g_x, begin + local, g, there)


@triton.jit
def load_statistics(mean, var, c, in_channels, EPS: tl.constexpr, DOUBLE: tl.constexpr):
    """Load μ and 1/√(σ² + ε)."""
    rstd = root_reciprocal(load(var, c, in_channels, DOUBLE), EPS, DOUBLE)
    return load(mean, c, in_channels, DOUBLE), rstd


@triton.jit
def channel_moments_kernel(
    x, mask, partial_n, partials, values, v_tiles, all_values, outer_stride, value_stride, channel_stride, channels,
    full_tiles, all_tiles, each, splits, blocks, HAS_MASK: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr,
    LAST: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write n, shift, mean, m2 of the tiles of a (block of channels, split), to (splits, C) and (3, splits, C)."""
    pid = tl.program_id(0)
    split = pid // blocks
    c0 = (pid % blocks) * C
    first = split * each
    last = tl.minimum(first + each, all_tiles)
    shape = shape_of(
        values, v_tiles, all_values, outer_stride, value_stride, channel_stride, channels, UNIT, LAST
    )  # fmt: skip
    n, shift, mean, m2 = moments_of_tiles(
        x, mask, first, full_tiles, last, shape, c0, HAS_MASK, DOUBLE, UNIT, LAST, K, V, C
    )
    c = channel_of(c0, C)
    at = split * channels + c
    tl.store(partial_n + at, n, mask=c < channels)
    tl.store(partials + at, shift, mask=c < channels)
    tl.store(partials + splits * channels + at, mean, mask=c < channels)
    tl.store(partials + 2 * splits * channels + at, m2, mask=c < channels)


@triton.jit
def channel_merge_kernel(
    partial_n, partials, mean, var, count, channels, splits, VARIANCE: tl.constexpr, K: tl.constexpr, C: tl.constexpr
):
    """Merge the moments of all splits of a channel into mean, variance (m2 without VARIANCE) and count."""
    c = tl.program_id(0) * C + tl.arange(0, C)[None, :]
    k = tl.arange(0, K)[:, None]
    where = (k < splits) & (c < channels)
    at = k * channels + c
    n = tl.load(partial_n + at, mask=where, other=0).to(tl.int64)
    shift = tl.load(partials + at, mask=where, other=0.0)
    mean_k = tl.load(partials + splits * channels + at, mask=where, other=0.0)
    m2_k = tl.load(partials + 2 * splits * channels + at, mask=where, other=0.0)
    n, shift, mean_1, m2 = merge_lanes(n, shift, mean_k, m2_k, 0)
    if VARIANCE:
        m2 = m2 / tl.maximum(n, 1).to(m2.dtype)
    tl.store(mean + c, shift + mean_1, mask=c < channels)
    tl.store(var + c, m2, mask=c < channels)
    tl.store(count + c, n, mask=c < channels)


@triton.jit
def channel_apply_kernel(
    x, y, residual, mask, mean, var, weight, bias, values, v_tiles, all_values, outer_stride, value_stride,
    channel_stride, channels, all_tiles, each, blocks, EPS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr, LAST: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Write y, with given statistics."""
    pid = tl.program_id(0)
    c0 = (pid % blocks) * C
    first = pid // blocks * each
    last = tl.minimum(first + each, all_tiles)
    c = channel_of(c0, C)
    statistics = load_statistics(mean, var, c, c < channels, EPS, DOUBLE)
    parameters = load_parameters(weight, bias, c, c < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE)
    shape = shape_of(
        values, v_tiles, all_values, outer_stride, value_stride, channel_stride, channels, UNIT, LAST
    )  # fmt: skip
    normalize_tiles(
        x, y, residual, mask, statistics, parameters, first, last, shape, c0, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL,
        HAS_MASK, ACTIVATION, SLOPE, DOUBLE, K, V, C,
    )  # fmt: skip


@triton.jit
def channel_forward_kernel(
    x, y, residual, mask, mean, var, count, weight, bias, values, v_tiles, all_values, outer_stride, value_stride,
    channel_stride, channels, full_tiles, all_tiles, EPS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr, LAST: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Write moments and y of a block of channels, in one program that reads it a second time from a cache."""
    c0 = tl.program_id(0) * C
    shape = shape_of(
        values, v_tiles, all_values, outer_stride, value_stride, channel_stride, channels, UNIT, LAST
    )  # fmt: skip
    n, shift, mean_1, m2 = moments_of_tiles(
        x, mask, 0, full_tiles, all_tiles, shape, c0, HAS_MASK, DOUBLE, UNIT, LAST, K, V, C
    )
    c = channel_of(c0, C)
    m2 = m2 / tl.maximum(n, 1).to(m2.dtype)
    mean_1 = shift + mean_1
    tl.store(mean + c, mean_1, mask=c < channels)
    tl.store(var + c, m2, mask=c < channels)
    tl.store(count + c, n.to(tl.int64), mask=c < channels)
    parameters = load_parameters(weight, bias, c, c < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE)
    normalize_tiles(
        x, y, residual, mask, (mean_1, root_reciprocal(m2, EPS, DOUBLE)), parameters, 0, all_tiles, shape, c0,
        HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE, K, V, C,
    )  # fmt: skip


@triton.jit
def channel_sums_kernel(
    g_y, x, residual, mask, g_residual, mean, var, weight, bias, partials, values, v_tiles, all_values, outer_stride,
    value_stride, channel_stride, channels, all_tiles, each, splits, blocks, EPS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr,
    STORE_G: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr,
    LAST: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write Σ∂ℓ/∂z and Σx̂·∂ℓ/∂z of the tiles of a (block of channels, split), to (2, splits, C)."""
    pid = tl.program_id(0)
    split = pid // blocks
    c0 = (pid % blocks) * C
    first = split * each
    last = tl.minimum(first + each, all_tiles)
    c = channel_of(c0, C)
    statistics = load_statistics(mean, var, c, c < channels, EPS, DOUBLE)
    parameters = load_parameters(weight, bias, c, c < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE)
    shape = shape_of(
        values, v_tiles, all_values, outer_stride, value_stride, channel_stride, channels, UNIT, LAST
    )  # fmt: skip
    sum_g, sum_g_xhat = sums_of_tiles(
        g_y, x, residual, mask, g_residual, statistics, parameters, first, last, shape, c0, HAS_WEIGHT, HAS_BIAS,
        HAS_RESIDUAL, HAS_MASK, STORE_G, ACTIVATION, SLOPE, DOUBLE, K, V, C,
    )  # fmt: skip
    at = split * channels + c
    tl.store(partials + at, sum_g, mask=c < channels)
    tl.store(partials + splits * channels + at, sum_g_xhat, mask=c < channels)


@triton.jit
def channel_differentiate_kernel(
    g_y, x, residual, mask, g_x, g_residual, mean, var, sum_g, sum_g_xhat, count, weight, bias, values, v_tiles,
    all_values, outer_stride, value_stride, channel_stride, channels, all_tiles, each, blocks, EPS: tl.constexpr,
    CONSTANT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_MASK: tl.constexpr, STORE_G: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr,
    UNIT: tl.constexpr, LAST: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write ∂ℓ/∂x, with given sums. CONSTANT: the statistics do not depend on x."""
    pid = tl.program_id(0)
    c0 = (pid % blocks) * C
    first = pid // blocks * each
    last = tl.minimum(first + each, all_tiles)
    c = channel_of(c0, C)
    statistics = load_statistics(mean, var, c, c < channels, EPS, DOUBLE)
    parameters = load_parameters(weight, bias, c, c < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE)
    if CONSTANT:
        means = (0.0, 0.0)
    else:
        n = widen(tl.maximum(tl.load(count + c, mask=c < channels, other=1), 1), DOUBLE)
        means = (load(sum_g, c, c < channels, DOUBLE) / n, load(sum_g_xhat, c, c < channels, DOUBLE) / n)
    shape = shape_of(
        values, v_tiles, all_values, outer_stride, value_stride, channel_stride, channels, UNIT, LAST
    )  # fmt: skip
    differentiate_tiles(
        g_y, x, residual, mask, g_x, g_residual, statistics, parameters, means, first, last, shape, c0, CONSTANT,
        HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, STORE_G, ACTIVATION, SLOPE, DOUBLE, K, V, C,
    )  # fmt: skip


@triton.jit
def channel_backward_kernel(
    g_y, x, residual, mask, g_x, g_residual, mean, var, count, weight, bias, g_weight, g_bias, values, v_tiles,
    all_values, outer_stride, value_stride, channel_stride, channels, all_tiles, EPS: tl.constexpr,
    CONSTANT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr,
    LAST: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write all gradients of a block of channels, in one program."""
    c0 = tl.program_id(0) * C
    c = channel_of(c0, C)
    statistics = load_statistics(mean, var, c, c < channels, EPS, DOUBLE)
    parameters = load_parameters(weight, bias, c, c < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE)
    shape = shape_of(
        values, v_tiles, all_values, outer_stride, value_stride, channel_stride, channels, UNIT, LAST
    )  # fmt: skip
    sum_g, sum_g_xhat = sums_of_tiles(
        g_y, x, residual, mask, g_residual, statistics, parameters, 0, all_tiles, shape, c0, HAS_WEIGHT, HAS_BIAS,
        HAS_RESIDUAL, HAS_MASK, False, ACTIVATION, SLOPE, DOUBLE, K, V, C,
    )  # fmt: skip
    if HAS_WEIGHT:
        store(g_weight, c, sum_g_xhat, c < channels)
    if HAS_BIAS:
        store(g_bias, c, sum_g, c < channels)
    if CONSTANT:
        means = (0.0, 0.0)
    else:
        n = widen(tl.maximum(tl.load(count + c, mask=c < channels, other=1), 1), DOUBLE)
        means = (sum_g / n, sum_g_xhat / n)
    differentiate_tiles(
        g_y, x, residual, mask, g_x, g_residual, statistics, parameters, means, 0, all_tiles, shape, c0,
        CONSTANT, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, HAS_RESIDUAL, ACTIVATION, SLOPE, DOUBLE, K, V, C,
    )  # fmt: skip
