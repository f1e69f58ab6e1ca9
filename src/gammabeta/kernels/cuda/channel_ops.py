"""The ops of the channel norms, as launches of Triton kernels: BatchNorm, whole and in halves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from gammabeta import reference
from gammabeta.activations import TABLE
from gammabeta.kernels.cuda import channel_norm as kernels
from gammabeta.kernels.cuda import launch
from gammabeta.kernels.cuda.launch import Tiles, ceil_div, power_of_2, unit_of
from gammabeta.kernels.cuda.sums import sum_partials
from gammabeta.kernels.cuda.tensors import Layout, Outputs, dense, finish_constants, layout_of, or_empty
from gammabeta.moments import statistics_dtype


@dataclass(frozen=True)
class View:
    """x as the kernels see it: (outer, values, channels), each with a stride."""

    layout: Layout
    outer: int
    values: int
    channels: int

    @classmethod
    def of(cls, x: Tensor) -> View:
        layout = layout_of(x)
        n, channels, positions = x.shape[0], x.shape[1], x.shape[2:].numel()
        return cls(layout, 1, n * positions, channels) if layout.channels_contiguous else cls(
            layout, n, positions, channels
        )  # fmt: skip

    @property
    def size(self) -> tuple[int, int, int, bool]:
        return self.outer, self.values, self.channels, self.layout.channels_contiguous

    def blocks(self, tiles: Tiles) -> int:
        return ceil_div(self.channels, tiles.channels)

    def geometry(self, tiles: Tiles) -> tuple[Any, ...]:
        """Return values and tiles of an outer sample, all values, strides (outer, values, channels), and channels."""
        if self.layout.channels_contiguous:
            values, strides = tiles.values, (tiles.values * self.channels, self.channels, 1)
        else:
            values, strides = self.values, (self.channels * self.values, 1, self.values)
        return values, ceil_div(values, tiles.values), self.outer * self.values, *strides, self.channels

    def launch_arguments(self, tiles: Tiles, constants: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a launch."""
        last = self.layout.channels_contiguous
        return {
            **constants, "UNIT": unit_of(self.channels if last else self.values), "LAST": last, "K": tiles.deep,
            "V": tiles.values, "C": tiles.channels, "num_warps": tiles.warps,
        }  # fmt: skip


def empty_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype, shape = statistics_dtype(x.dtype), (x.shape[1],)
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=torch.int64)


def reduce_moments(
    x: Tensor, mask: Tensor | None, view: View, tiles: Tiles, variance: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean, variance (or m2) and count of dense x."""
    mean, var, count = empty_statistics(x)
    splits, blocks, channels = tiles.splits, view.blocks(tiles), view.channels
    partial_n = torch.empty((splits, channels), dtype=torch.int32, device=x.device)
    partials = torch.empty((3, splits, channels), dtype=mean.dtype, device=x.device)
    constants = {"HAS_MASK": mask is not None, "DOUBLE": x.dtype == torch.float64}
    wrap_triton(kernels.channel_moments_kernel)[(blocks * splits,)](
        x, mask, partial_n, partials, *view.geometry(tiles), tiles.full, tiles.count, tiles.each, splits, blocks,
        **view.launch_arguments(tiles, constants),
    )  # fmt: skip
    wrap_triton(kernels.channel_merge_kernel)[(ceil_div(channels, launch.LAUNCH.merged),)](
        partial_n, partials, mean, var, count, channels, splits, VARIANCE=variance,
        K=power_of_2(splits, launch.LAUNCH.most_splits), C=launch.LAUNCH.merged, num_warps=8,
    )  # fmt: skip
    return mean, var, count


def channel_moments(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    view = View.of(x)
    return reduce_moments(
        view.layout.dense(x), dense(mask), view, launch.LAUNCH.of_moments(*view.size, x.dtype.itemsize), False
    )


def channel_norm_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None, eps: float,
    activation: str, slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    view = View.of(x)
    tiles = launch.LAUNCH.of_moments(*view.size, x.dtype.itemsize)
    if not launch.LAUNCH.fuses(tiles, view.channels, x.dtype.itemsize):
        mask = dense(mask)
        mean, var, count = reduce_moments(view.layout.dense(x), mask, view, tiles, True)
        y = channel_apply_forward(x, mean, var, weight, bias, residual, mask, eps, activation, slope)
        return y, mean, var, count
    mean, var, count = empty_statistics(x)
    outputs = Outputs(view.layout)
    y = outputs.like(x, reference.output_dtype(x, residual))
    constants = {"EPS": eps, **finish_constants(x, weight, bias, residual, mask, activation, slope)}
    wrap_triton(kernels.channel_forward_kernel)[(view.blocks(tiles),)](
        view.layout.dense(x), y, view.layout.optional(residual), dense(mask), mean,
        var, count, dense(weight), dense(bias), *view.geometry(tiles), tiles.full, tiles.count,
        **view.launch_arguments(tiles, constants),
    )  # fmt: skip
    return outputs.results()[0], mean, var, count


def channel_apply_forward(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    mask: Tensor | None, eps: float, activation: str, slope: float,
) -> Tensor:  # fmt: skip
    view = View.of(x)
    tiles = launch.LAUNCH.of_application(*view.size, x.dtype.itemsize)
    outputs = Outputs(view.layout)
    y = outputs.like(x, reference.output_dtype(x, residual))
    constants = {"EPS": eps, **finish_constants(x, weight, bias, residual, mask, activation, slope)}
    blocks = view.blocks(tiles)
    wrap_triton(kernels.channel_apply_kernel)[(blocks * tiles.splits,)](
        view.layout.dense(x), y, view.layout.optional(residual), dense(mask),
        dense(mean), dense(var), dense(weight), dense(bias), *view.geometry(tiles), tiles.count, tiles.each, blocks,
        **view.launch_arguments(tiles, constants),
    )  # fmt: skip
    return outputs.results()[0]


def channel_backward_reduce(
    g_y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None,
    mean: Tensor, var: Tensor, eps: float, activation: str, slope: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    sum_g, sum_g_xhat, _ = empty_statistics(x)
    view = View.of(x)
    partials = reduce_sums(
        view, g_y, x, weight, bias, residual, mask, None, mean, var, eps, activation, slope
    )  # fmt: skip
    sum_partials(partials, sum_g, sum_g_xhat)
    return sum_g, sum_g_xhat


def reduce_sums(
    view: View, g_y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    mask: Tensor | None, g_residual: Tensor | None, mean: Tensor, var: Tensor, eps: float, activation: str,
    slope: float,
) -> Tensor:  # fmt: skip
    """Compute every program's Σ∂ℓ/∂z and Σx̂·∂ℓ/∂z. ∂ℓ/∂z itself is written to `g_residual` where that is given."""
    tiles = launch.LAUNCH.of_sums(*view.size, x.dtype.itemsize)
    splits, blocks = tiles.splits, view.blocks(tiles)
    partials = torch.empty((2, splits, view.channels), dtype=statistics_dtype(x.dtype), device=x.device)
    constants = {
        "EPS": eps,
        "STORE_G": g_residual is not None,
        **finish_constants(x, weight, bias, residual, mask, activation, slope),
    }
    wrap_triton(kernels.channel_sums_kernel)[(blocks * splits,)](
        view.layout.dense(g_y), view.layout.dense(x), view.layout.optional(residual),
        dense(mask), g_residual, dense(mean), dense(var), dense(weight), dense(bias), partials, *view.geometry(tiles),
        tiles.count, tiles.each, splits, blocks, **view.launch_arguments(tiles, constants),
    )  # fmt: skip
    return partials


def channel_backward_apply(
    g_y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None,
    mean: Tensor, var: Tensor, sum_g: Tensor, sum_g_xhat: Tensor, count: Tensor, eps: float, activation: str,
    slope: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    view = View.of(x)
    outputs = Outputs(view.layout)
    g_x = outputs.like(x)
    g_residual = None if residual is None else outputs.like(residual)
    differentiate(
        view, g_y, x, weight, bias, residual, mask, g_x, g_residual, mean, var, sum_g, sum_g_xhat, count, eps,
        activation, slope,
    )  # fmt: skip
    g_x, *of_residual = outputs.results()
    return g_x, of_residual[0] if of_residual else x.new_empty(0)


def differentiate(
    view: View, g_y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    mask: Tensor | None, g_x: Tensor, g_residual: Tensor | None, mean: Tensor, var: Tensor, sum_g: Tensor | None,
    sum_g_xhat: Tensor | None, count: Tensor | None, eps: float, activation: str, slope: float,
) -> None:  # fmt: skip
    """Write ∂ℓ/∂x, and ∂ℓ/∂z where `g_residual` is given, in x's layout. The statistics are constants if `count` is
    None."""
    tiles = launch.LAUNCH.of_application(*view.size, x.dtype.itemsize)
    blocks = view.blocks(tiles)
    constants = {
        "EPS": eps,
        "CONSTANT": count is None,
        "STORE_G": g_residual is not None,
        **finish_constants(x, weight, bias, residual, mask, activation, slope),
    }
    wrap_triton(kernels.channel_differentiate_kernel)[(blocks * tiles.splits,)](
        view.layout.dense(g_y), view.layout.dense(x), view.layout.optional(residual),
        dense(mask), g_x, g_residual, dense(mean), dense(var), dense(sum_g), dense(sum_g_xhat), dense(count),
        dense(weight), dense(bias), *view.geometry(tiles), tiles.count, tiles.each, blocks,
        **view.launch_arguments(tiles, constants),
    )  # fmt: skip


def holds_exactly(g_y: Tensor, residual: Tensor, activation: str, arithmetic: torch.dtype) -> bool:
    """Return whether the residual's gradient holds ∂ℓ/∂z without rounding: for some activations ∂ℓ/∂z is g_y or 0."""
    if residual.dtype == arithmetic:
        return True
    return TABLE[activation].exact_gradient and residual.dtype == g_y.dtype


def channel_norm_backward(
    g_y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None,
    mean: Tensor, var: Tensor, count: Tensor | None, eps: float, activation: str, slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    view = View.of(x)
    outputs = Outputs(view.layout)
    g_x = outputs.like(x)
    g_residual = None if residual is None else outputs.like(residual)
    # Contiguous, since they have one axis.
    g_weight, g_bias = (None if t is None else torch.empty_like(t) for t in (weight, bias))
    tiles = launch.LAUNCH.of_sums(*view.size, x.dtype.itemsize)
    if launch.LAUNCH.fuses(tiles, view.channels, 2 * x.dtype.itemsize):
        constants = {
            "EPS": eps,
            "CONSTANT": count is None,
            **finish_constants(x, weight, bias, residual, mask, activation, slope),
        }
        wrap_triton(kernels.channel_backward_kernel)[(view.blocks(tiles),)](
            view.layout.dense(g_y), view.layout.dense(x), view.layout.optional(residual),
            dense(mask), g_x, g_residual, dense(mean), dense(var), dense(count), dense(weight), dense(bias), g_weight,
            g_bias, *view.geometry(tiles), tiles.count, **view.launch_arguments(tiles, constants),
        )  # fmt: skip
    else:
        # Make them dense once, for both passes.
        g_y, x, mask = view.layout.dense(g_y), view.layout.dense(x), dense(mask)
        residual = view.layout.optional(residual)
        arithmetic = statistics_dtype(x.dtype)
        early = residual is not None and holds_exactly(g_y, residual, activation, arithmetic)
        sums: tuple[Tensor | None, Tensor | None] = (None, None)
        if count is not None or weight is not None or bias is not None or early:
            partials = reduce_sums(
                view, g_y, x, weight, bias, residual, mask, g_residual if early else None, mean, var,
                eps, activation, slope,
            )  # fmt: skip
            if count is not None and all(g is not None and g.dtype == arithmetic for g in (g_bias, g_weight)):
                sums = g_bias, g_weight  # the same values
            elif count is not None:
                sums = empty_statistics(x)[:2]
                sum_partials(partials, *sums)
            if weight is not None or bias is not None:
                sum_partials(partials, g_bias, g_weight)
        if early:
            # The residual's gradient is ∂ℓ/∂z, so one tensor is read instead of two.
            assert g_residual is not None
            differentiate(
                view, g_residual, x, weight, None, None, mask, g_x, None, mean, var, *sums, count, eps, "none", 0.0
            )
        else:
            differentiate(
                view, g_y, x, weight, bias, residual, mask, g_x, g_residual, mean, var, *sums, count, eps, activation,
                slope,
            )  # fmt: skip
    g_x, *of_residual = outputs.results()
    return g_x, or_empty(g_weight, x), or_empty(g_bias, x), of_residual[0] if of_residual else x.new_empty(0)
