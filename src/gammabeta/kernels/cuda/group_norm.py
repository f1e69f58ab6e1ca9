"""The Triton kernels of norms over groups of any size: GroupNorm, InstanceNorm, and rows too long for registers.

A group is (D, V): channels and values of one sample, each with a stride. Positions are contiguous (the stride of the
values is 1), or channels are (LAST); the other strides are multiples of UNIT. A tile is (K, V, D): K times (V, D), side
by side along the channels (ALONG_D) or along the values. Tiles are numbered along the values first. γ and β have D
values for each of the G groups, the mask has V values for each sample. Where there are few groups, several programs
share each. They write partial moments, which `channel_merge_kernel` merges (a group takes the place of a channel), and
partial sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gammabeta.kernels.cuda.arithmetic import (
    accessed_at_once,
    in_lanes,
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
def channels_of(d_tile, ALONG_D: tl.constexpr, K: tl.constexpr, D: tl.constexpr):
    """Return the channels of a tile within its group, (K, 1, D) or (1, 1, D)."""
    d = tl.arange(0, D)[None, None, :]
    if ALONG_D:
        return (d_tile * K + tl.arange(0, K)[:, None, None]) * D + d
    else:
        return d_tile * D + d


@triton.jit
def place(
    group, v_tile, d_tile, shape, mask, HAS_MASK: tl.constexpr, UNIT: tl.constexpr, LAST: tl.constexpr,
    ALONG_D: tl.constexpr, K: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Return a tile's offsets in x, its channels within the group, which elements exist, and which of them count."""
    values, channels, groups, sample_stride, group_stride, value_stride, channel_stride = shape
    d = channels_of(d_tile, ALONG_D, K, D)
    v = tl.arange(0, V)[None, :, None]
    if ALONG_D:
        v = v_tile * V + v
    else:
        v = (v_tile * K + tl.arange(0, K)[:, None, None]) * V + v
    if LAST:
        channels = multiple(channels, UNIT)
        value_stride = multiple(value_stride, UNIT)
    else:
        values = multiple(values, UNIT)
        channel_stride = multiple(channel_stride, UNIT)
    sample = (group // groups).to(tl.int64)
    at = sample * multiple(sample_stride, UNIT) + (group % groups).to(tl.int64) * multiple(group_stride, UNIT)
    at = at + v.to(tl.int64) * value_stride + d.to(tl.int64) * channel_stride
    there = (v < values) & (d < channels)
    if HAS_MASK:
        where = there & (tl.load(mask + sample * values + v, mask=v < values, other=0) != 0)
    else:
        where = there
    return at, d, there, where


@triton.jit
def moments_of_group(
    x, mask, group, first, last, v_tiles, shape, CENTER: tl.constexpr, HAS_MASK: tl.constexpr, UNIT: tl.constexpr,
    LAST: tl.constexpr, ALONG_D: tl.constexpr, DOUBLE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Compute n, shift, mean and m2, each (1, 1, 1), of the tiles. Without CENTER, mean is 0, m2 is Σx²."""
    G: tl.constexpr = accessed_at_once(UNIT, D if LAST else V)
    A: tl.constexpr = V * D // G if LAST else V // G
    B: tl.constexpr = 1 if LAST else D
    a = tl.arange(0, A)[None, :, None, None, None]
    lane_v = a // (D // G) if LAST else a * G
    lane_d = a % (D // G) * G if LAST else tl.arange(0, D)[None, None, None, None, :]
    n = widen(tl.zeros([1, A, 1, 1, B], tl.float32), DOUBLE)
    shift = n
    mean = n
    m2 = n
    for t in range(first, last):
        v_tile = t % v_tiles
        d_tile = t // v_tiles
        at, _, _, where = place(group, v_tile, d_tile, shape, mask, HAS_MASK, UNIT, LAST, ALONG_D, K, V, D)
        value = tl.reshape(load(x, at, where, DOUBLE), (K, A, G, 1, B))
        where = tl.reshape(tl.broadcast_to(where, (K, V, D)), (K, A, G, 1, B))
        if CENTER:
            # Where all K tiles exist, a lane exists as a whole or not at all.
            if ALONG_D:
                full = (d_tile + 1) * (K * D) <= shape[1]
                lane = (v_tile * V + lane_v < shape[0]) & (lane_d < D)
            else:
                full = (v_tile + 1) * (K * V) <= shape[0]
                lane = (d_tile * D + lane_d < shape[1]) & (lane_v < V)
            if HAS_MASK:
                n, shift, mean, m2 = update_moments((n, shift, mean, m2), value, where, True, DOUBLE)
            elif full:
                n, shift, mean, m2 = update_moments((n, shift, mean, m2), value, lane, False, DOUBLE)
            else:
                n, shift, mean, m2 = update_moments((n, shift, mean, m2), value, where, True, DOUBLE)
        else:
            n += in_lanes(widen(tl.where(where, 1.0, 0.0), DOUBLE))
            m2 += in_lanes(value * value)
    count = n.to(tl.int32)
    if CENTER:
        count, shift, mean, m2 = merge_lanes(count, shift, mean, m2, 1)
        count, shift, mean, m2 = merge_lanes(count, shift, mean, m2, 4)
    else:
        count = tl.sum(tl.sum(count, 1, keep_dims=True), 4, keep_dims=True)
        m2 = tl.sum(tl.sum(m2, 1, keep_dims=True), 4, keep_dims=True)
        shift = tl.zeros_like(m2)
        mean = shift
    return scalar(count), scalar(shift), scalar(mean), scalar(m2)


@triton.jit
def scalar(x):
    return tl.reshape(x, (1, 1, 1))


@triton.jit
def normalize_group(
    x, y, residual, mask, statistics, weight, bias, group, first, last, v_tiles, shape, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr, LAST: tl.constexpr, ALONG_D: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write y of the tiles from first to last."""
    channels, groups = shape[1], shape[2]
    for t in range(first, last):
        at, d, there, where = place(
            group, t % v_tiles, t // v_tiles, shape, mask, HAS_MASK, UNIT, LAST, ALONG_D, K, V, D
        )  # fmt: skip
        parameters = load_parameters(
            weight, bias, (group % groups) * channels + d, d < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE
        )
        z = finish(
            load(x, at, where, DOUBLE), residual, at, where, statistics, parameters, HAS_WEIGHT, HAS_BIAS,
            HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE,
        )  # fmt: skip
        store(y, at, z, there)


@triton.jit
def sums_of_group(
    g_y, x, residual, mask, statistics, weight, bias, partials, part, parts, group, d_first, d_last, v_first, v_last,
    shape, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr, LAST: tl.constexpr,
    ALONG_D: tl.constexpr, K: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Compute Σ∂ℓ/∂x̂ and Σx̂·∂ℓ/∂x̂ of a range of tiles. Write its channels' Σ∂ℓ/∂z and Σx̂·∂ℓ/∂z to (2, parts, G·D)."""
    channels, groups = shape[1], shape[2]
    DEEP: tl.constexpr = K if ALONG_D else 1
    total = widen(tl.zeros([DEEP, 1, D], tl.float32), DOUBLE)
    total_xhat = total
    for d_tile in range(d_first, d_last):
        d = channels_of(d_tile, ALONG_D, K, D)
        c = (group % groups) * channels + d
        parameters = load_parameters(weight, bias, c, d < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE)
        sum_g = widen(tl.zeros([DEEP, V, D], tl.float32), DOUBLE)
        sum_g_xhat = sum_g
        for v_tile in range(v_first, v_last):
            at, _, _, where = place(group, v_tile, d_tile, shape, mask, HAS_MASK, UNIT, LAST, ALONG_D, K, V, D)
            xhat, g = backward_of_finish(
                g_y, x, residual, at, where, statistics, parameters, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, ACTIVATION,
                SLOPE, DOUBLE,
            )  # fmt: skip
            g_xhat = g * xhat
            if not ALONG_D:
                g = tl.sum(g, 0, keep_dims=True)
                g_xhat = tl.sum(g_xhat, 0, keep_dims=True)
            sum_g += g
            sum_g_xhat += g_xhat
        of_d = tl.sum(sum_g, 1, keep_dims=True)
        of_d_xhat = tl.sum(sum_g_xhat, 1, keep_dims=True)
        if HAS_BIAS:
            tl.store(partials + part.to(tl.int64) * channels * groups + c, of_d, mask=d < channels)
        if HAS_WEIGHT:
            tl.store(partials + (parts + part).to(tl.int64) * channels * groups + c, of_d_xhat, mask=d < channels)
            of_d = of_d * parameters[0]
            of_d_xhat = of_d_xhat * parameters[0]
        total += of_d
        total_xhat += of_d_xhat
    total = tl.sum(tl.sum(total, 0, keep_dims=True), 2, keep_dims=True)
    return total, tl.sum(tl.sum(total_xhat, 0, keep_dims=True), 2, keep_dims=True)


@triton.jit
def differentiate_group(
    g_y, x, residual, mask, g_x, g_residual, statistics, means, weight, bias, group, first, last, v_tiles, shape,
    CENTER: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr,
    LAST: tl.constexpr, ALONG_D: tl.constexpr, K: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write ∂ℓ/∂x and ∂ℓ/∂z of the tiles from first to last, from the means of ∂ℓ/∂x̂ and x̂·∂ℓ/∂x̂."""
    channels, groups = shape[1], shape[2]
    mean_g, mean_g_xhat = means
    for t in range(first, last):
        at, d, there, where = place(
            group, t % v_tiles, t // v_tiles, shape, mask, HAS_MASK, UNIT, LAST, ALONG_D, K, V, D
        )  # fmt: skip
        parameters = load_parameters(
            weight, bias, (group % groups) * channels + d, d < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE
        )
        xhat, g = backward_of_finish(
            g_y, x, residual, at, where, statistics, parameters, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, ACTIVATION, SLOPE,
            DOUBLE,
        )  # fmt: skip
        if HAS_RESIDUAL:
            store(g_residual, at, g, there)
        if HAS_WEIGHT:
            g = g * parameters[0]
        g = g - xhat * mean_g_xhat
        if CENTER:
            g = g - mean_g
        g = g * statistics[1]
        if HAS_MASK:
            g = tl.where(where, g, 0.0)
        store(g_x, at, g, there)


@triton.jit
def group_statistics(mean, var, group, EPS: tl.constexpr, DOUBLE: tl.constexpr):
    """Load μ and 1/√(σ² + ε)."""
    rstd = root_reciprocal(widen(tl.load(var + group), DOUBLE), EPS, DOUBLE)
    return widen(tl.load(mean + group), DOUBLE), rstd


@triton.jit
def group_forward_kernel(
    x, y, residual, mask, mean, var, count, weight, bias, values, channels, groups, sample_stride, group_stride,
    value_stride, channel_stride, v_tiles, d_tiles, EPS: tl.constexpr, CENTER: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr, LAST: tl.constexpr, ALONG_D: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write moments and y of a group, in one program that reads it a second time from a cache."""
    group = tl.program_id(0)
    last = v_tiles * d_tiles
    shape = (values, channels, groups, sample_stride, group_stride, value_stride, channel_stride)
    n, shift, mean_1, m2 = moments_of_group(
        x, mask, group, 0, last, v_tiles, shape, CENTER, HAS_MASK, UNIT, LAST, ALONG_D, DOUBLE, K, V, D
    )
    mean_1 = shift + mean_1
    m2 = m2 / tl.maximum(n, 1).to(m2.dtype)
    at = group + tl.zeros([1, 1, 1], tl.int32)
    tl.store(mean + at, mean_1)
    tl.store(var + at, m2)
    tl.store(count + at, n.to(tl.int64))
    normalize_group(
        x, y, residual, mask, (mean_1, root_reciprocal(m2, EPS, DOUBLE)), weight, bias, group, 0, last, v_tiles,
        shape, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE, UNIT, LAST, ALONG_D, K, V, D,
    )  # fmt: skip


@triton.jit
def group_moments_kernel(
    x, mask, partial_n, partials, values, channels, groups, sample_stride, group_stride, value_stride, channel_stride,
    v_tiles, d_tiles, each, splits, all_groups, CENTER: tl.constexpr, HAS_MASK: tl.constexpr, DOUBLE: tl.constexpr,
    UNIT: tl.constexpr, LAST: tl.constexpr, ALONG_D: tl.constexpr, K: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write n, shift, mean, m2 of the tiles of a (group, split), to (splits, groups) and (3, splits, groups)."""
    pid = tl.program_id(0)
    group = pid % all_groups
    split = pid // all_groups
    first = split * each
    last = tl.minimum(first + each, v_tiles * d_tiles)
    shape = (values, channels, groups, sample_stride, group_stride, value_stride, channel_stride)
    n, shift, mean, m2 = moments_of_group(
        x, mask, group, first, last, v_tiles, shape, CENTER, HAS_MASK, UNIT, LAST, ALONG_D, DOUBLE, K, V, D
    )
    at = split * all_groups + group + tl.zeros([1, 1, 1], tl.int32)
    tl.store(partial_n + at, n)
    tl.store(partials + at, shift)
    tl.store(partials + splits * all_groups + at, mean)
    tl.store(partials + 2 * splits * all_groups + at, m2)


@triton.jit
def group_apply_kernel(
    x, y, residual, mask, mean, var, weight, bias, values, channels, groups, sample_stride, group_stride, value_stride,
    channel_stride, v_tiles, d_tiles, each, all_groups, EPS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr, LAST: tl.constexpr, ALONG_D: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write y, with given statistics."""
    pid = tl.program_id(0)
    group = pid % all_groups
    first = pid // all_groups * each
    last = tl.minimum(first + each, v_tiles * d_tiles)
    shape = (values, channels, groups, sample_stride, group_stride, value_stride, channel_stride)
    normalize_group(
        x, y, residual, mask, group_statistics(mean, var, group, EPS, DOUBLE), weight, bias, group, first, last,
        v_tiles, shape, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE, UNIT, LAST, ALONG_D, K,
        V, D,
    )  # fmt: skip


@triton.jit
def group_backward_kernel(
    g_y, x, residual, mask, g_x, g_residual, mean, var, count, weight, bias, partials, samples, values, channels,
    groups, sample_stride, group_stride, value_stride, channel_stride, v_tiles, d_tiles, EPS: tl.constexpr,
    CENTER: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr,
    LAST: tl.constexpr, ALONG_D: tl.constexpr, K: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write ∂ℓ/∂x of a group, and its sample's part of ∂ℓ/∂β and ∂ℓ/∂γ, to (2, samples, G·D)."""
    group = tl.program_id(0)
    shape = (values, channels, groups, sample_stride, group_stride, value_stride, channel_stride)
    statistics = group_statistics(mean, var, group, EPS, DOUBLE)
    sum_g, sum_g_xhat = sums_of_group(
        g_y, x, residual, mask, statistics, weight, bias, partials, group // groups, samples, group, 0, d_tiles, 0,
        v_tiles, shape, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE, UNIT, LAST, ALONG_D, K,
        V, D,
    )  # fmt: skip
    n = widen(tl.maximum(tl.load(count + group), 1), DOUBLE)
    differentiate_group(
        g_y, x, residual, mask, g_x, g_residual, statistics, (sum_g / n, sum_g_xhat / n), weight, bias, group, 0,
        v_tiles * d_tiles, v_tiles, shape, CENTER, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE,
        DOUBLE, UNIT, LAST, ALONG_D, K, V, D,
    )  # fmt: skip


@triton.jit
def group_sums_kernel(
    g_y, x, residual, mask, mean, var, weight, bias, partials, totals, samples, values, channels, groups, sample_stride,
    group_stride, value_stride, channel_stride, v_tiles, d_tiles, v_each, d_each, v_splits, splits, all_groups,
    EPS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr,
    LAST: tl.constexpr, ALONG_D: tl.constexpr, K: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write the sums of a (group, split) over its channels and values, to (2, splits, groups); those of each channel to
    (2, v_splits · samples, G·D)."""
    pid = tl.program_id(0)
    group = pid % all_groups
    split = pid // all_groups
    v_split = split % v_splits
    d_first = split // v_splits * d_each
    shape = (values, channels, groups, sample_stride, group_stride, value_stride, channel_stride)
    sum_g, sum_g_xhat = sums_of_group(
        g_y, x, residual, mask, group_statistics(mean, var, group, EPS, DOUBLE), weight, bias, partials,
        v_split * samples + group // groups, v_splits * samples, group, d_first,
        tl.minimum(d_first + d_each, d_tiles), v_split * v_each, tl.minimum((v_split + 1) * v_each, v_tiles), shape,
        HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE, UNIT, LAST, ALONG_D, K, V, D,
    )  # fmt: skip
    at = split * all_groups + group + tl.zeros([1, 1, 1], tl.int32)
    tl.store(totals + at, sum_g)
    tl.store(totals + splits * all_groups + at, sum_g_xhat)


@triton.jit
def group_differentiate_kernel(
    g_y, x, residual, mask, g_x, g_residual, mean, var, count, sum_g, sum_g_xhat, weight, bias, values, channels,
    groups, sample_stride, group_stride, value_stride, channel_stride, v_tiles, d_tiles, each, all_groups,
    EPS: tl.constexpr, CENTER: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    DOUBLE: tl.constexpr, UNIT: tl.constexpr, LAST: tl.constexpr, ALONG_D: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write ∂ℓ/∂x, with given sums."""
    pid = tl.program_id(0)
    group = pid % all_groups
    first = pid // all_groups * each
    last = tl.minimum(first + each, v_tiles * d_tiles)
    n = widen(tl.maximum(tl.load(count + group), 1), DOUBLE)
    means = (tl.load(sum_g + group) / n, tl.load(sum_g_xhat + group) / n)
    shape = (values, channels, groups, sample_stride, group_stride, value_stride, channel_stride)
    differentiate_group(
        g_y, x, residual, mask, g_x, g_residual, group_statistics(mean, var, group, EPS, DOUBLE), means, weight, bias,
        group, first, last, v_tiles, shape, CENTER, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE,
        DOUBLE, UNIT, LAST, ALONG_D, K, V, D,
    )  # fmt: skip
