"""The Triton kernels of norms over rows that fit into registers: LayerNorm and RMSNorm, and both of x + residual.

x is (R, D), contiguous; γ and β are (D,), the mask is (R,), and D is a multiple of UNIT. A tile is (R, D) with all of
D, so that everything is read once. In backward a program takes a run of rows and writes one partial sum of the
parameters' gradients.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gammabeta.kernels.cuda.arithmetic import load, multiple, root_reciprocal, store, widen
from gammabeta.kernels.cuda.finish import backward_of_finish, finish, load_parameters


@triton.jit
def counted_rows(mask, row, rows, HAS_MASK: tl.constexpr):
    """Return which rows of a tile, (R, 1), exist and count."""
    if HAS_MASK:
        return (row < rows) & (tl.load(mask + row, mask=row < rows, other=0) != 0)
    else:
        return row < rows


@triton.jit
def row_moments(x, where, length, CENTER: tl.constexpr, DOUBLE: tl.constexpr):
    """Compute mean and variance of every row, (R, 1), in two passes over registers, with a correction of the mean."""
    n = widen(length, DOUBLE)
    if CENTER:
        shift = tl.sum(x, 1, keep_dims=True) / n
        deviation = tl.where(where, x - shift, 0.0)
        correction = tl.sum(deviation, 1, keep_dims=True) / n
        deviation = tl.where(where, deviation - correction, 0.0)
        return shift + correction, tl.sum(deviation * deviation, 1, keep_dims=True) / n
    else:
        mean_square = tl.sum(x * x, 1, keep_dims=True) / n
        return tl.zeros_like(mean_square), mean_square


@triton.jit
def row_forward_kernel(
    x, y, residual, total, mask, mean, var, count, weight, bias, rows, length, EPS: tl.constexpr, CENTER: tl.constexpr,
    ADD: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr,
    R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Compute y and the statistics of a tile of rows. ADD: of x + residual, which is written to `total`."""
    length = multiple(length, UNIT)
    row = tl.program_id(0) * R + tl.arange(0, R)[:, None]
    d = tl.arange(0, D)[None, :]
    at = row.to(tl.int64) * length + d
    there = (row < rows) & (d < length)
    counted = counted_rows(mask, row, rows, HAS_MASK)
    where = counted & (d < length)
    value = load(x, at, where, DOUBLE)
    if ADD:
        # Normalize the sum as it is stored, since backward reads only that.
        value = (value + load(residual, at, where, DOUBLE)).to(total.dtype.element_ty)
        tl.store(total + at, value, mask=there)
        value = widen(value, DOUBLE)
    mean_1, var_1 = row_moments(value, where, length, CENTER, DOUBLE)
    tl.store(mean + row, mean_1, mask=row < rows)
    tl.store(var + row, var_1, mask=row < rows)
    tl.store(count + row, tl.where(counted, length, 0).to(tl.int64), mask=row < rows)
    parameters = load_parameters(weight, bias, d, d < length, HAS_WEIGHT, HAS_BIAS, DOUBLE)
    z = finish(
        value, residual, at, where, (mean_1, root_reciprocal(var_1, EPS, DOUBLE)), parameters, HAS_WEIGHT, HAS_BIAS,
        HAS_RESIDUAL, HAS_MASK, ACTIVATION, SLOPE, DOUBLE,
    )  # fmt: skip
    store(y, at, z, there)


@triton.jit
def row_backward_kernel(
    g_y, g_total, x, residual, mask, g_x, g_residual, mean, var, weight, bias, partials, rows, length, all_tiles, each,
    programs, EPS: tl.constexpr, CENTER: tl.constexpr, ADD: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr, ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr, DOUBLE: tl.constexpr, UNIT: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write ∂ℓ/∂x of a run of tiles, and its part of ∂ℓ/∂β and ∂ℓ/∂γ, to (2, programs, D). ADD: plus `g_total`."""
    length = multiple(length, UNIT)
    program = tl.program_id(0)
    first = program * each
    last = tl.minimum(first + each, all_tiles)
    d = tl.arange(0, D)[None, :]
    parameters = load_parameters(weight, bias, d, d < length, HAS_WEIGHT, HAS_BIAS, DOUBLE)
    n = widen(length, DOUBLE)
    sum_g = widen(tl.zeros([R, D], tl.float32), DOUBLE)
    sum_g_xhat = sum_g
    for tile in range(first, last):
        row = tile * R + tl.arange(0, R)[:, None]
        at = row.to(tl.int64) * length + d
        there = (row < rows) & (d < length)
        where = counted_rows(mask, row, rows, HAS_MASK) & (d < length)
        rstd = root_reciprocal(load(var, row, row < rows, DOUBLE), EPS, DOUBLE)
        statistics = (load(mean, row, row < rows, DOUBLE), rstd)
        xhat, g = backward_of_finish(
            g_y, x, residual, at, where, statistics, parameters, HAS_WEIGHT, HAS_BIAS, HAS_RESIDUAL, ACTIVATION, SLOPE,
            DOUBLE,
        )  # fmt: skip
        if HAS_RESIDUAL:
            store(g_residual, at, g, there)
        if HAS_BIAS:
            sum_g += g
        if HAS_WEIGHT:
            sum_g_xhat += g * xhat
            g = g * parameters[0]
        out = g - xhat * (tl.sum(g * xhat, 1, keep_dims=True) / n)
        if CENTER:
            out = out - tl.sum(g, 1, keep_dims=True) / n
        out = out * rstd
        if HAS_MASK:
            out = tl.where(where, out, 0.0)
        if ADD:
            # Rounded before the sum, as the reference's gradient is.
            out = widen(out.to(g_x.dtype.element_ty), DOUBLE) + load(g_total, at, there, DOUBLE)
        store(g_x, at, out, there)
    if HAS_BIAS:
        tl.store(partials + program * length + d, tl.sum(sum_g, 0, keep_dims=True), mask=d < length)
    if HAS_WEIGHT:
        at_weight = (programs + program) * length + d
        tl.store(partials + at_weight, tl.sum(sum_g_xhat, 0, keep_dims=True), mask=d < length)
