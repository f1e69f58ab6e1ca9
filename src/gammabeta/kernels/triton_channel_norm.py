"""The Triton kernels of the channel norms, for both layouts.

x is (O, V, C): outer samples, values of a channel in one of them, channels, with a stride each. Positions contiguous:
O = N, V = S, and the stride of the values is 1. Channels contiguous (channels_last): O = 1, V = N·S, and the stride
of the channels is 1. A tile is (V, C) of one outer sample, tiles are numbered through all of them, and a program
takes a run of them for one block of channels. All tensors of x's shape come in x's layout, each in its own dtype; the
mask is (O, V).
"""

from __future__ import annotations

import triton
import triton.language as tl

from gammabeta.kernels.triton_finish import backward_of_finish, finish, load_parameters
from gammabeta.kernels.triton_math import load, merge_lanes, root_reciprocal, store, update_moments, widen


@triton.jit
def place(t, shape, c0, V: tl.constexpr):
    """Where tile t begins in x and in the mask, and how many values of its sample are left from there."""
    values, tiles, outer_stride, value_stride, channel_stride, _ = shape
    outer = (t // tiles).to(tl.int64)
    v0 = ((t % tiles) * V).to(tl.int64)
    begin = outer * outer_stride + v0 * value_stride + c0.to(tl.int64) * channel_stride
    return begin, outer * values + v0, values - v0


@triton.jit
def offsets(shape, V: tl.constexpr, C: tl.constexpr):
    """Of a tile's elements from where it begins."""
    return tl.arange(0, V)[:, None] * shape[3] + tl.arange(0, C)[None, :] * shape[4]


@triton.jit
def counts(mask, at, rest, in_channels, HAS_MASK: tl.constexpr, V: tl.constexpr):
    """Which elements of a tile are there, and which of them count."""
    v = tl.arange(0, V)[:, None]
    there = (v < rest) & in_channels
    if HAS_MASK:
        return there, there & (tl.load(mask + at + v, mask=v < rest, other=0) != 0)
    else:
        return there, there


@triton.jit
def moments_of_tiles(
    x, mask, first, last, shape, c0, HAS_MASK: tl.constexpr, EVEN: tl.constexpr, DOUBLE: tl.constexpr,
    V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """n, shift, mean and m2, each (1, C), of the tiles from first to last. EVEN: only the last tile of all is not
    full."""
    channels = shape[5]
    c = tl.arange(0, C)[None, :]
    local = offsets(shape, V, C)
    in_channels = c0 + c < channels
    n = tl.zeros([V, C], tl.int32)
    mean = widen(tl.zeros([V, C], tl.float32), DOUBLE)
    m2 = mean
    shift = mean
    for t in range(first, last):
        begin, at, rest = place(t, shape, c0, V)
        where = counts(mask, at, rest, in_channels, HAS_MASK, V)[1]
        value = load(x + begin, local, where, DOUBLE)
        shift = tl.where(where & (n == 0), value, shift)
        if HAS_MASK or not EVEN:
            reciprocal = 1.0 / widen(n + 1, DOUBLE)
        else:
            reciprocal = 1.0 / widen(t - first + 1, DOUBLE)  # the same for every lane that is there
        n, mean, m2 = update_moments(n, mean, m2, value - shift, where, reciprocal)
    return merge_lanes(n, shift, mean, m2, 0)


@triton.jit
def normalize_tiles(
    x, y, residual, mask, statistics, parameters, first, last, shape, c0,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """y of the tiles from first to last."""
    channels = shape[5]
    c = tl.arange(0, C)[None, :]
    local = offsets(shape, V, C)
    for t in range(first, last):
        begin, at, rest = place(t, shape, c0, V)
        there, where = counts(mask, at, rest, c0 + c < channels, HAS_MASK, V)
        z = finish(
            load(x + begin, local, where, DOUBLE), residual, begin + local, where, statistics, parameters, HAS_WEIGHT,
            HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE,
        )  # fmt: skip
        store(y, begin + local, z, there)


@triton.jit
def sums_of_tiles(
    g_y, x, residual, mask, g_residual, statistics, parameters, first, last, shape, c0,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr,
    STORE_G: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Σ∂ℓ/∂z and Σx̂·∂ℓ/∂z, each (1, C); with STORE_G ∂ℓ/∂z is written on the way."""
    channels = shape[5]
    c = tl.arange(0, C)[None, :]
    local = offsets(shape, V, C)
    sum_g = widen(tl.zeros([V, C], tl.float32), DOUBLE)
    sum_g_xhat = sum_g
    for t in range(first, last):
        begin, at, rest = place(t, shape, c0, V)
        there, where = counts(mask, at, rest, c0 + c < channels, HAS_MASK, V)
        xhat, g = backward_of_finish(
            g_y, x, residual, begin + local, where, statistics, parameters, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL,
            ACTIVATION, SLOPE, DOUBLE,
        )  # fmt: skip
        if STORE_G:
            store(g_residual, begin + local, g, there)
        sum_g += g
        sum_g_xhat += g * xhat
    return tl.sum(sum_g, 0, keep_dims=True), tl.sum(sum_g_xhat, 0, keep_dims=True)


@triton.jit
def differentiate_tiles(
    g_y, x, residual, mask, g_x, g_residual, statistics, parameters, means, first, last, shape, c0,
    CONSTANT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK:
    tl.constexpr, STORE_G: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, V:
    tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """∂ℓ/∂x of the tiles from first to last; with STORE_G ∂ℓ/∂z too. `means` of ∂ℓ/∂z and x̂·∂ℓ/∂z, if not CONSTANT."""
    channels = shape[5]
    mean_g, mean_g_xhat = means
    scale = statistics[1]
    if HAS_WEIGHT:
        scale = scale * parameters[0]
    c = tl.arange(0, C)[None, :]
    local = offsets(shape, V, C)
    for t in range(first, last):
        begin, at, rest = place(t, shape, c0, V)
        there, where = counts(mask, at, rest, c0 + c < channels, HAS_MASK, V)
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
    """μ and 1/√(σ² + ε)."""
    rstd = root_reciprocal(load(var, c, in_channels, DOUBLE), EPS, DOUBLE)
    return load(mean, c, in_channels, DOUBLE), rstd


@triton.jit
def channel_moments_kernel(
    x, mask, partial_n, partials, values, tiles, outer_stride, value_stride, channel_stride, channels, all_tiles, each,
    splits, blocks, HAS_MASK: tl.constexpr, EVEN: tl.constexpr, DOUBLE: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Program (block of channels, split): n, shift, mean, m2 of its tiles, to (splits, C) and (3, splits, C)."""
    pid = tl.program_id(0)
    split = pid // blocks
    c0 = (pid % blocks) * C
    first = split.to(tl.int64) * each
    last = tl.minimum(first + each, all_tiles)
    shape = (values, tiles, outer_stride, value_stride, channel_stride, channels)
    n, shift, mean, m2 = moments_of_tiles(x, mask, first, last, shape, c0, HAS_MASK, EVEN, DOUBLE, V, C)
    c = c0 + tl.arange(0, C)[None, :]
    at = split * channels + c
    tl.store(partial_n + at, n, mask=c < channels)
    tl.store(partials + at, shift, mask=c < channels)
    tl.store(partials + splits * channels + at, mean, mask=c < channels)
    tl.store(partials + 2 * splits * channels + at, m2, mask=c < channels)


@triton.jit
def channel_merge_kernel(
    partial_n, partials, mean, var, count, channels, splits, VARIANCE: tl.constexpr, K: tl.constexpr, C: tl.constexpr
):
    """What the splits of a channel found, as one: mean, variance (m2 without VARIANCE) and count."""
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
    x, y, residual, mask, mean, var, weight, bias, values, tiles, outer_stride, value_stride, channel_stride, channels,
    all_tiles, each, blocks, EPS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    DOUBLE: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """y by statistics that are given."""
    pid = tl.program_id(0)
    c0 = (pid % blocks) * C
    first = (pid // blocks).to(tl.int64) * each
    last = tl.minimum(first + each, all_tiles)
    c = c0 + tl.arange(0, C)[None, :]
    statistics = load_statistics(mean, var, c, c < channels, EPS, DOUBLE)
    parameters = load_parameters(weight, bias, c, c < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE)
    shape = (values, tiles, outer_stride, value_stride, channel_stride, channels)
    normalize_tiles(
        x, y, residual, mask, statistics, parameters, first, last, shape, c0, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL,
        HAS_MASK, ACTIVATION, SLOPE, DOUBLE, V, C,
    )  # fmt: skip


@triton.jit
def channel_forward_kernel(
    x, y, residual, mask, mean, var, count, weight, bias, values, tiles, outer_stride, value_stride, channel_stride,
    channels, all_tiles, EPS: tl.constexpr, EVEN: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    DOUBLE: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Moments and y of a block of channels, all in one program: the second reading comes from a cache."""
    c0 = tl.program_id(0) * C
    first = c0.to(tl.int64) * 0
    shape = (values, tiles, outer_stride, value_stride, channel_stride, channels)
    n, shift, mean_1, m2 = moments_of_tiles(x, mask, first, all_tiles, shape, c0, HAS_MASK, EVEN, DOUBLE, V, C)
    c = c0 + tl.arange(0, C)[None, :]
    m2 = m2 / tl.maximum(n, 1).to(m2.dtype)
    mean_1 = shift + mean_1
    tl.store(mean + c, mean_1, mask=c < channels)
    tl.store(var + c, m2, mask=c < channels)
    tl.store(count + c, n.to(tl.int64), mask=c < channels)
    parameters = load_parameters(weight, bias, c, c < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE)
    normalize_tiles(
        x, y, residual, mask, (mean_1, root_reciprocal(m2, EPS, DOUBLE)), parameters, first, all_tiles, shape, c0,
        HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE, V, C,
    )  # fmt: skip


@triton.jit
def channel_sums_kernel(
    g_y, x, residual, mask, g_residual, mean, var, weight, bias, partials, values, tiles, outer_stride, value_stride,
    channel_stride, channels, all_tiles, each, splits, blocks, EPS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, STORE_G: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Program (block of channels, split): Σ∂ℓ/∂z and Σx̂·∂ℓ/∂z of its tiles, to (2, splits, C)."""
    pid = tl.program_id(0)
    split = pid // blocks
    c0 = (pid % blocks) * C
    first = split.to(tl.int64) * each
    last = tl.minimum(first + each, all_tiles)
    c = c0 + tl.arange(0, C)[None, :]
    statistics = load_statistics(mean, var, c, c < channels, EPS, DOUBLE)
    parameters = load_parameters(weight, bias, c, c < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE)
    shape = (values, tiles, outer_stride, value_stride, channel_stride, channels)
    sum_g, sum_g_xhat = sums_of_tiles(
        g_y, x, residual, mask, g_residual, statistics, parameters, first, last, shape, c0, HAS_WEIGHT, HAS_BIAS,
        HAS_RESIDUAL, HAS_MASK, STORE_G, ACTIVATION, SLOPE, DOUBLE, V, C,
    )  # fmt: skip
    at = split * channels + c
    tl.store(partials + at, sum_g, mask=c < channels)
    tl.store(partials + splits * channels + at, sum_g_xhat, mask=c < channels)


@triton.jit
def channel_differentiate_kernel(
    g_y, x, residual, mask, g_x, g_residual, mean, var, sum_g, sum_g_xhat, count, weight, bias, values, tiles,
    outer_stride, value_stride, channel_stride, channels, all_tiles, each, blocks, EPS: tl.constexpr,
    CONSTANT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_MASK: tl.constexpr, STORE_G: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    DOUBLE: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """∂ℓ/∂x by sums that are given; CONSTANT: the statistics do not depend on x."""
    pid = tl.program_id(0)
    c0 = (pid % blocks) * C
    first = (pid // blocks).to(tl.int64) * each
    last = tl.minimum(first + each, all_tiles)
    c = c0 + tl.arange(0, C)[None, :]
    statistics = load_statistics(mean, var, c, c < channels, EPS, DOUBLE)
    parameters = load_parameters(weight, bias, c, c < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE)
    if CONSTANT:
        means = (0.0, 0.0)
    else:
        n = widen(tl.maximum(tl.load(count + c, mask=c < channels, other=1), 1), DOUBLE)
        means = (load(sum_g, c, c < channels, DOUBLE) / n, load(sum_g_xhat, c, c < channels, DOUBLE) / n)
    shape = (values, tiles, outer_stride, value_stride, channel_stride, channels)
    differentiate_tiles(
        g_y, x, residual, mask, g_x, g_residual, statistics, parameters, means, first, last, shape, c0, CONSTANT,
        HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, STORE_G, ACTIVATION, SLOPE, DOUBLE, V, C,
    )  # fmt: skip


@triton.jit
def channel_backward_kernel(
    g_y, x, residual, mask, g_x, g_residual, mean, var, count, weight, bias, g_weight, g_bias, values, tiles,
    outer_stride, value_stride, channel_stride, channels, all_tiles, EPS: tl.constexpr, CONSTANT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """All gradients of a block of channels, in one program."""
    c0 = tl.program_id(0) * C
    first = c0.to(tl.int64) * 0
    c = c0 + tl.arange(0, C)[None, :]
    statistics = load_statistics(mean, var, c, c < channels, EPS, DOUBLE)
    parameters = load_parameters(weight, bias, c, c < channels, HAS_WEIGHT, HAS_BIAS, DOUBLE)
    shape = (values, tiles, outer_stride, value_stride, channel_stride, channels)
    sum_g, sum_g_xhat = sums_of_tiles(
        g_y, x, residual, mask, g_residual, statistics, parameters, first, all_tiles, shape, c0, HAS_WEIGHT, HAS_BIAS,
        HAS_RESIDUAL, HAS_MASK, False, ACTIVATION, SLOPE, DOUBLE, V, C,
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
        g_y, x, residual, mask, g_x, g_residual, statistics, parameters, means, first, all_tiles, shape, c0,
        CONSTANT, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, HAS_MASK, HAS_RESIDUAL, ACTIVATION, SLOPE, DOUBLE, V, C,
    )  # fmt: skip
