"""The Triton kernels of norms over groups of any size: GroupNorm, InstanceNorm, and rows too long for registers.

A group is (D, V): channels and values of one sample, with a stride each; positions are contiguous (the stride of the
values is 1), or channels are. A tile is (V, D), and tiles are numbered along the values first. γ and β have D values
for each of the G groups, the mask has V values for each sample. Where groups are few, several programs share each: they
leave partial moments (merged by `channel_merge_kernel`, a group taking the place of a channel) and partial sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gammabeta.kernels.triton_finish import backward_of_finish, finish, load_parameters
from gammabeta.kernels.triton_math import load, merge_lanes, root_reciprocal, store, update_moments, widen


@triton.jit
def place(group, v_tile, d_tile, shape, mask, HAS_MASK: tl.constexpr, V: tl.constexpr, D: tl.constexpr):
    """Of a tile: where its elements are in x; its channels within the group; what is there; what of it counts."""
    values, channels, groups, sample_stride, group_stride, value_stride, channel_stride = shape
    v = v_tile * V + tl.arange(0, V)[:, None]
    d = d_tile * D + tl.arange(0, D)[None, :]
    sample = (group // groups).to(tl.int64)
    at = sample * sample_stride + (group % groups).to(tl.int64) * group_stride
    at = at + v.to(tl.int64) * value_stride + d.to(tl.int64) * channel_stride
    there = (v < values) & (d < channels)
    if HAS_MASK:
        where = there & (tl.load(mask + sample * values + v, mask=v < values, other=0) != 0)
    else:
        where = there
    return at, d, there, where


@triton.jit
def moments_of_group(
    x, mask, group, first, last, v_tiles, shape, CENTER: tl.constexpr, HAS_MASK: tl.constexpr, DOUBLE: tl.constexpr,
    V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """n, shift, mean and m2, each (1, 1), of the tiles from first to last; without CENTER of squares about 0."""
    n = tl.zeros([V, D], tl.int32)
    mean = widen(tl.zeros([V, D], tl.float32), DOUBLE)
    m2 = mean
    shift = mean
    for t in range(first, last):
        at, _, _, where = place(group, t % v_tiles, t // v_tiles, shape, mask, HAS_MASK, V, D)
        value = load(x, at, where, DOUBLE)
        if CENTER:
            shift = tl.where(where & (n == 0), value, shift)
            n, mean, m2 = update_moments(n, mean, m2, value - shift, where, 1.0 / widen(n + 1, DOUBLE))
        else:
            n += tl.where(where, 1, 0)
            m2 += value * value
    if CENTER:
        n, shift, mean, m2 = merge_lanes(n, shift, mean, m2, 0)
        return merge_lanes(n, shift, mean, m2, 1)
    else:
        n = tl.sum(tl.sum(n, 0, keep_dims=True), 1, keep_dims=True)
        m2 = tl.sum(tl.sum(m2, 0, keep_dims=True), 1, keep_dims=True)
        return n, tl.zeros_like(m2), tl.zeros_like(m2), m2


@triton.jit
def normalize_group(
    x, y, residual, mask, statistics, weight, bias, group, first, last, v_tiles, shape, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr, DOUBLE: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """y of the tiles from first to last."""
    channels, groups = shape[1], shape[2]
    for t in range(first, last):
        at, d, there, where = place(group, t % v_tiles, t // v_tiles, shape, mask, HAS_MASK, V, D)
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
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Σ∂ℓ/∂x̂ and Σx̂·∂ℓ/∂x̂ of a range of tiles; Σ∂ℓ/∂z and Σx̂·∂ℓ/∂z of each channel in it go to (2, parts, G·D)."""
    channels, groups = shape[1], shape[2]
    total = widen(tl.zeros([1, D], tl.float32), DOUBLE)
    total_xhat = total
    for d_tile in range(d_first, d_last):
        d = d_tile * D + tl.arange(0, D)[None, :]
        c = (group % groups) * channels + d
        parameters = load_parameters(weight, bias, c, d < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE)
        sum_g = widen(tl.zeros([V, D], tl.float32), DOUBLE)
        sum_g_xhat = sum_g
        for v_tile in range(v_first, v_last):
            at, _, _, where = place(group, v_tile, d_tile, shape, mask, HAS_MASK, V, D)
            xhat, g = backward_of_finish(
                g_y, x, residual, at, where, statistics, parameters, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, ACTIVATION,
                SLOPE, DOUBLE,
            )  # fmt: skip
            sum_g += g
            sum_g_xhat += g * xhat
        of_d = tl.sum(sum_g, 0, keep_dims=True)
        of_d_xhat = tl.sum(sum_g_xhat, 0, keep_dims=True)
        if HAS_BIAS:
            tl.store(partials + part.to(tl.int64) * channels * groups + c, of_d, mask=d < channels)
        if HAS_WEIGHT:
            tl.store(partials + (parts + part).to(tl.int64) * channels * groups + c, of_d_xhat, mask=d < channels)
            of_d = of_d * parameters[0]
            of_d_xhat = of_d_xhat * parameters[0]
        total += of_d
        total_xhat += of_d_xhat
    return tl.sum(total, 1, keep_dims=True), tl.sum(total_xhat, 1, keep_dims=True)


@triton.jit
def differentiate_group(
    g_y, x, residual, mask, g_x, g_residual, statistics, means, weight, bias, group, first, last, v_tiles, shape,
    CENTER: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, V: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """∂ℓ/∂x and ∂ℓ/∂z of the tiles from first to last, by the means of ∂ℓ/∂x̂ and x̂·∂ℓ/∂x̂."""
    channels, groups = shape[1], shape[2]
    mean_g, mean_g_xhat = means
    for t in range(first, last):
        at, d, there, where = place(group, t % v_tiles, t // v_tiles, shape, mask, HAS_MASK, V, D)
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
    """μ and 1/√(σ² + ε)."""
    rstd = root_reciprocal(widen(tl.load(var + group), DOUBLE), EPS, DOUBLE)
    return widen(tl.load(mean + group), DOUBLE), rstd


@triton.jit
def group_forward_kernel(
    x, y, residual, mask, mean, var, count, weight, bias, values, channels, groups, sample_stride, group_stride,
    value_stride, channel_stride, v_tiles, d_tiles, EPS: tl.constexpr, CENTER: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Moments and y of a group, all in one program: the second reading comes from a cache."""
    group = tl.program_id(0)
    last = v_tiles * d_tiles
    shape = (values, channels, groups, sample_stride, group_stride, value_stride, channel_stride)
    n, shift, mean_1, m2 = moments_of_group(x, mask, group, 0, last, v_tiles, shape, CENTER, HAS_MASK, DOUBLE, V, D)
    mean_1 = shift + mean_1
    m2 = m2 / tl.maximum(n, 1).to(m2.dtype)
    at = group + tl.zeros([1, 1], tl.int32)
    tl.store(mean + at, mean_1)
    tl.store(var + at, m2)
    tl.store(count + at, n.to(tl.int64))
    normalize_group(
        x, y, residual, mask, (mean_1, root_reciprocal(m2, EPS, DOUBLE)), weight, bias, group, 0, last, v_tiles,
        shape, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE, V, D,
    )  # fmt: skip


@triton.jit
def group_moments_kernel(
    x, mask, partial_n, partials, values, channels, groups, sample_stride, group_stride, value_stride, channel_stride,
    v_tiles, d_tiles, each, splits, all_groups, CENTER: tl.constexpr, HAS_MASK: tl.constexpr, DOUBLE: tl.constexpr,
    V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Program (group, split): n, shift, mean, m2 of its tiles, to (splits, groups) and (3, splits, groups)."""
    pid = tl.program_id(0)
    group = pid % all_groups
    split = pid // all_groups
    first = split * each
    last = tl.minimum(first + each, v_tiles * d_tiles)
    shape = (values, channels, groups, sample_stride, group_stride, value_stride, channel_stride)
    n, shift, mean, m2 = moments_of_group(x, mask, group, first, last, v_tiles, shape, CENTER, HAS_MASK, DOUBLE, V, D)
    at = split * all_groups + group + tl.zeros([1, 1], tl.int32)
    tl.store(partial_n + at, n)
    tl.store(partials + at, shift)
    tl.store(partials + splits * all_groups + at, mean)
    tl.store(partials + 2 * splits * all_groups + at, m2)


@triton.jit
def group_apply_kernel(
    x, y, residual, mask, mean, var, weight, bias, values, channels, groups, sample_stride, group_stride,
    value_stride, channel_stride, v_tiles, d_tiles, each, all_groups, EPS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr, DOUBLE: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """y by statistics that have been taken."""
    pid = tl.program_id(0)
    group = pid % all_groups
    first = pid // all_groups * each
    last = tl.minimum(first + each, v_tiles * d_tiles)
    shape = (values, channels, groups, sample_stride, group_stride, value_stride, channel_stride)
    normalize_group(
        x, y, residual, mask, group_statistics(mean, var, group, EPS, DOUBLE), weight, bias, group, first, last,
        v_tiles, shape, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE, V, D,
    )  # fmt: skip


@triton.jit
def group_backward_kernel(
    g_y, x, residual, mask, g_x, g_residual, mean, var, count, weight, bias, partials, samples, values, channels,
    groups, sample_stride, group_stride, value_stride, channel_stride, v_tiles, d_tiles, EPS: tl.constexpr,
    CENTER: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, V: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """∂ℓ/∂x of a group, and its sample's part of ∂ℓ/∂β and ∂ℓ/∂γ, to (2, samples, G·D)."""
    group = tl.program_id(0)
    shape = (values, channels, groups, sample_stride, group_stride, value_stride, channel_stride)
    statistics = group_statistics(mean, var, group, EPS, DOUBLE)
    sum_g, sum_g_xhat = sums_of_group(
        g_y, x, residual, mask, statistics, weight, bias, partials, group // groups, samples, group, 0, d_tiles, 0,
        v_tiles, shape, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE, V, D,
    )  # fmt: skip
    n = widen(tl.maximum(tl.load(count + group), 1), DOUBLE)
    differentiate_group(
        g_y, x, residual, mask, g_x, g_residual, statistics, (sum_g / n, sum_g_xhat / n), weight, bias, group, 0,
        v_tiles * d_tiles, v_tiles, shape, CENTER, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE,
        DOUBLE, V, D,
    )  # fmt: skip


@triton.jit
def group_sums_kernel(
    g_y, x, residual, mask, mean, var, weight, bias, partials, totals, samples, values, channels, groups,
    sample_stride, group_stride, value_stride, channel_stride, v_tiles, d_tiles, v_each, d_each, v_splits, splits,
    all_groups, EPS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, V: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """Program (group, split): sums of its range of channels and values, to (2, splits, groups); by channel, to
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
        HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE, V, D,
    )  # fmt: skip
    at = split * all_groups + group + tl.zeros([1, 1], tl.int32)
    tl.store(totals + at, sum_g)
    tl.store(totals + splits * all_groups + at, sum_g_xhat)


@triton.jit
def group_differentiate_kernel(
    g_y, x, residual, mask, g_x, g_residual, mean, var, count, sum_g, sum_g_xhat, weight, bias, values, channels,
    groups, sample_stride, group_stride, value_stride, channel_stride, v_tiles, d_tiles, each, all_groups,
    EPS: tl.constexpr, CENTER: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    DOUBLE: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """∂ℓ/∂x by sums that have been taken."""
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
        DOUBLE, V, D,
    )  # fmt: skip
