"""The ops of the sample norms, as launches of Triton kernels: Layer-, RMS-, Group- and InstanceNorm, add_… norms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from gammabeta import reference
from gammabeta.kernels.cuda import channel_norm, group_norm, launch, row_norm
from gammabeta.kernels.cuda.launch import GroupTiles, ceil_div, power_of_2, unit_of
from gammabeta.kernels.cuda.sums import sum_partials
from gammabeta.kernels.cuda.tensors import Layout, Outputs, dense, finish_constants, layout_of, or_empty
from gammabeta.moments import statistics_dtype


@dataclass(frozen=True)
class View:
    """x as (samples, groups, channels of a group, values)."""

    layout: Layout
    samples: int
    groups: int
    channels: int
    values: int
    value_bytes: int

    @classmethod
    def of(cls, x: Tensor, sample_axes: int, channel_axes: int, groups: int) -> View:
        channels = math.prod(x.shape[sample_axes : sample_axes + channel_axes])
        values = math.prod(x.shape[sample_axes + channel_axes :])
        # Only (N, C, *positions) can have contiguous channels.
        layout = layout_of(x) if (sample_axes, channel_axes) == (1, 1) and x.ndim > 2 else Layout(False)
        return cls(layout, math.prod(x.shape[:sample_axes]), groups, channels // groups, values, x.dtype.itemsize)

    @property
    def all_groups(self) -> int:
        return self.samples * self.groups

    @property
    def in_rows(self) -> bool:
        """Return whether a group is a row that fits into registers."""
        return self.groups == 1 and self.values == 1 and self.channels <= launch.LAUNCH.row

    @property
    def channels_last(self) -> bool:
        return self.layout.channels_contiguous or self.values == 1

    def tiles(self) -> GroupTiles:
        return launch.LAUNCH.group_tiles(self.values, self.channels, self.channels_last, self.value_bytes)

    def geometry(self) -> tuple[Any, ...]:
        """Return values, channels, groups, the strides of samples, groups, values, channels, and the number of tiles
        along values and channels."""
        sample = self.groups * self.channels * self.values
        if self.layout.channels_contiguous:
            strides = sample, self.channels, self.groups * self.channels, 1
        else:
            strides = sample, self.channels * self.values, 1, self.values
        tiles = self.tiles()
        return self.values, self.channels, self.groups, *strides, tiles.v_count, tiles.d_count

    def launch_arguments(self, constants: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a launch."""
        tiles = self.tiles()
        return {
            **constants, "UNIT": unit_of(self.channels if self.channels_last else self.values),
            "LAST": self.channels_last, "ALONG_D": tiles.along_channels, "K": tiles.deep, "V": tiles.values,
            "D": tiles.channels, "num_warps": launch.LAUNCH.group_warps,
        }  # fmt: skip

    def empty_statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype, shape = statistics_dtype(x.dtype), (self.samples, self.groups)
        return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=torch.int64)


def sample_norm_forward(
    x: Tensor, sample_axes: int, channel_axes: int, groups: int, weight: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, mask: Tensor | None, eps: float, activation: str, slope: float, center: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    view = View.of(x, sample_axes, channel_axes, groups)
    outputs = Outputs(view.layout)
    y = outputs.like(x, reference.output_dtype(x, residual))
    statistics = view.empty_statistics(x)
    constants = {"EPS": eps, "CENTER": center, **finish_constants(x, weight, bias, residual, mask, activation, slope)}
    residual = view.layout.optional(residual)
    x, weight, bias, mask = view.layout.dense(x), dense(weight), dense(bias), dense(mask)
    if view.in_rows:
        normalize_rows(view, x, y, residual, None, mask, statistics, weight, bias, constants)
        return outputs.results()[0], *statistics
    tiles = view.tiles()
    splits = launch.LAUNCH.group_splits(view.all_groups, tiles.v_count, tiles.d_count)
    if splits == (1, 1):
        wrap_triton(group_norm.group_forward_kernel)[(view.all_groups,)](
            x, y, residual, mask, *statistics, weight, bias, *view.geometry(), **view.launch_arguments(constants)
        )
        return outputs.results()[0], *statistics
    count = tiles.v_count * tiles.d_count
    each = ceil_div(count, math.prod(splits))
    parts = ceil_div(count, each)
    reduce_moments(view, x, mask, statistics, each, parts, center)
    del constants["CENTER"]
    wrap_triton(group_norm.group_apply_kernel)[(view.all_groups * parts,)](
        x, y, residual, mask, *statistics[:2], weight, bias, *view.geometry(), each, view.all_groups,
        **view.launch_arguments(constants),
    )  # fmt: skip
    return outputs.results()[0], *statistics


def normalize_rows(
    view: View, x: Tensor, y: Tensor, residual: Tensor | None, total: Tensor | None, mask: Tensor | None,
    statistics: tuple[Tensor, ...], weight: Tensor | None, bias: Tensor | None, constants: dict[str, Any],
) -> None:  # fmt: skip
    r, d, warps = launch.LAUNCH.row_tiles(view.samples, view.channels, launch.LAUNCH.row_values)
    wrap_triton(row_norm.row_forward_kernel)[(ceil_div(view.samples, r),)](
        x, y, residual, total, mask, *statistics, weight, bias, view.samples, view.channels, ADD=total is not None,
        **constants, UNIT=unit_of(view.channels), R=r, D=d, num_warps=warps,
    )  # fmt: skip


def reduce_moments(
    view: View, x: Tensor, mask: Tensor | None, statistics: tuple[Tensor, Tensor, Tensor], each: int, parts: int,
    center: bool,
) -> None:  # fmt: skip
    """Write the statistics of groups that several programs share."""
    partial_n = torch.empty((parts, view.all_groups), dtype=torch.int32, device=x.device)
    partials = torch.empty((3, parts, view.all_groups), dtype=statistics[0].dtype, device=x.device)
    constants = {"CENTER": center, "HAS_MASK": mask is not None, "DOUBLE": x.dtype == torch.float64}
    wrap_triton(group_norm.group_moments_kernel)[(view.all_groups * parts,)](
        x, mask, partial_n, partials, *view.geometry(), each, parts, view.all_groups, **view.launch_arguments(constants)
    )
    wrap_triton(channel_norm.channel_merge_kernel)[(ceil_div(view.all_groups, launch.LAUNCH.merged),)](
        partial_n, partials, *statistics, view.all_groups, parts, VARIANCE=True,
        K=power_of_2(parts, launch.LAUNCH.most_splits), C=launch.LAUNCH.merged, num_warps=8,
    )  # fmt: skip


def sample_norm_backward(
    g_y: Tensor, x: Tensor, sample_axes: int, channel_axes: int, groups: int, weight: Tensor | None,
    bias: Tensor | None, residual: Tensor | None, mask: Tensor | None, mean: Tensor, var: Tensor, count: Tensor,
    eps: float, activation: str, slope: float, center: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    view = View.of(x, sample_axes, channel_axes, groups)
    tiles = view.tiles()
    outputs = Outputs(view.layout)
    g_x = outputs.like(x)
    g_residual = None if residual is None else outputs.like(residual)
    constants = {"EPS": eps, "CENTER": center, **finish_constants(x, weight, bias, residual, mask, activation, slope)}
    g_weight, g_bias = (
        None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format) for t in (weight, bias)
    )
    tensors = (
        view.layout.dense(g_y), view.layout.dense(x), view.layout.optional(residual),
        dense(mask), g_x, g_residual,
    )  # fmt: skip
    parameters = dense(weight), dense(bias)
    mean, var, count = mean.contiguous(), var.contiguous(), count.contiguous()
    if view.in_rows:
        partials = differentiate_rows(view, tensors[0], None, *tensors[1:], mean, var, *parameters, constants)
    elif launch.LAUNCH.group_splits(view.all_groups, tiles.v_count, tiles.d_count) == (1, 1):
        partials = empty_partials(view, view.samples, x)
        wrap_triton(group_norm.group_backward_kernel)[(view.all_groups,)](
            *tensors, mean, var, count, *parameters, partials, view.samples, *view.geometry(),
            **view.launch_arguments(constants),
        )  # fmt: skip
    else:
        partials = differentiate_shared_groups(view, tensors, (mean, var, count), parameters, constants)
    if weight is not None or bias is not None:
        sum_partials(partials, g_bias, g_weight)
    g_x, *of_residual = outputs.results()
    g_weight, g_bias = (or_empty(as_promised(g, t), x) for g, t in ((g_weight, weight), (g_bias, bias)))
    return g_x, g_weight, g_bias, of_residual[0] if of_residual else x.new_empty(0)


def as_promised(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    """Return the gradient with the strides of `torch.empty_like(parameter)`."""
    if gradient is None or parameter is None or parameter.is_contiguous():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def empty_partials(view: View, rows: int, x: Tensor) -> Tensor:
    columns = view.groups * view.channels
    return torch.empty((2, rows, columns), dtype=statistics_dtype(x.dtype), device=x.device)


def differentiate_rows(
    view: View, g_y: Tensor, g_total: Tensor | None, x: Tensor, residual: Tensor | None, mask: Tensor | None,
    g_x: Tensor, g_residual: Tensor | None, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None,
    constants: dict[str, Any],
) -> Tensor:  # fmt: skip
    """Write ∂ℓ/∂x, and return every program's part of ∂ℓ/∂β and ∂ℓ/∂γ."""
    r, d, warps = launch.LAUNCH.row_tiles(view.samples, view.channels, launch.LAUNCH.row_backward_values)
    tiles = ceil_div(view.samples, r)
    each, programs = launch.LAUNCH.row_programs(tiles, warps)
    partials = empty_partials(view, programs, x)
    wrap_triton(row_norm.row_backward_kernel)[(programs,)](
        g_y, g_total, x, residual, mask, g_x, g_residual, mean, var, weight, bias, partials, view.samples,
        view.channels, tiles, each, programs, ADD=g_total is not None, **constants, UNIT=unit_of(view.channels), R=r,
        D=d, num_warps=warps,
    )  # fmt: skip
    return partials


def differentiate_shared_groups(
    view: View, tensors: tuple[Tensor | None, ...], statistics: tuple[Tensor, Tensor, Tensor],
    parameters: tuple[Tensor | None, Tensor | None], constants: dict[str, Any],
) -> Tensor:  # fmt: skip
    """Do the same for groups that several programs share."""
    g_y, x, residual, mask = tensors[:4]
    assert x is not None
    tiles = view.tiles()
    v_tiles, d_tiles = tiles.v_count, tiles.d_count
    v_splits, d_splits = launch.LAUNCH.group_splits(view.all_groups, v_tiles, d_tiles)
    v_each, d_each = ceil_div(v_tiles, v_splits), ceil_div(d_tiles, d_splits)
    splits = v_splits * d_splits
    partials = empty_partials(view, v_splits * view.samples, x)
    totals = torch.empty((2, splits, view.all_groups), dtype=partials.dtype, device=x.device)
    of_sums = {name: value for name, value in constants.items() if name != "CENTER"}
    wrap_triton(group_norm.group_sums_kernel)[(view.all_groups * splits,)](
        g_y, x, residual, mask, *statistics[:2], *parameters, partials, totals, view.samples, *view.geometry(), v_each,
        d_each, v_splits, splits, view.all_groups, **view.launch_arguments(of_sums),
    )  # fmt: skip
    sums = [torch.empty(view.all_groups, dtype=partials.dtype, device=x.device) for _ in range(2)]
    sum_partials(totals, *sums)
    each = ceil_div(v_tiles * d_tiles, splits)
    parts = ceil_div(v_tiles * d_tiles, each)
    wrap_triton(group_norm.group_differentiate_kernel)[(view.all_groups * parts,)](
        *tensors,
        *statistics,
        *sums,
        *parameters,
        *view.geometry(),
        each,
        view.all_groups,
        **view.launch_arguments(constants),
    )
    return partials


def add_sample_norm_forward(
    x: Tensor, residual: Tensor, channel_axes: int, weight: Tensor | None, bias: Tensor | None, eps: float,
    center: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sample_axes = x.ndim - channel_axes
    dtype = torch.promote_types(x.dtype, residual.dtype)
    view = View.of(x, sample_axes, channel_axes, 1)
    if not view.in_rows:
        total = torch.empty_like(x, dtype=dtype).copy_(x + residual)
        of_total = sample_norm_forward(
            total, sample_axes, channel_axes, 1, weight, bias, None, None, eps, "none", 0.0, center
        )
        return of_total[0], total, *of_total[1:]
    outputs = Outputs(view.layout)
    total, y = outputs.like(x, dtype), outputs.like(x, dtype)
    statistics = view.empty_statistics(total)
    constants = {"EPS": eps, "CENTER": center, **finish_constants(total, weight, bias, None, None, "none", 0.0)}
    normalize_rows(
        view, view.layout.dense(x), y, view.layout.dense(residual), total, None, statistics, dense(weight), dense(bias),
        constants,
    )  # fmt: skip
    total, y = outputs.results()
    return y, total, *statistics


def add_sample_norm_backward(
    g_y: Tensor, g_total: Tensor, total: Tensor, channel_axes: int, weight: Tensor | None, bias: Tensor | None,
    mean: Tensor, var: Tensor, count: Tensor, eps: float, center: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sample_axes = total.ndim - channel_axes
    view = View.of(total, sample_axes, channel_axes, 1)
    if not view.in_rows:
        g, *of_parameters, _ = sample_norm_backward(
            g_y, total, sample_axes, channel_axes, 1, weight, bias, None, None, mean, var, count, eps, "none", 0.0,
            center,
        )  # fmt: skip
        return torch.empty_like(total).copy_(g + g_total), of_parameters[0], of_parameters[1]
    outputs = Outputs(view.layout)
    g_x = outputs.like(total)
    constants = {"EPS": eps, "CENTER": center, **finish_constants(total, weight, bias, None, None, "none", 0.0)}
    partials = differentiate_rows(
        view, view.layout.dense(g_y), view.layout.dense(g_total), view.layout.dense(total), None, None, g_x, None,
        mean.contiguous(), var.contiguous(), dense(weight), dense(bias), constants,
    )  # fmt: skip
    g_weight, g_bias = (
        None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format) for t in (weight, bias)
    )
    if weight is not None or bias is not None:
        sum_partials(partials, g_bias, g_weight)
    g_weight, g_bias = (or_empty(as_promised(g, t), total) for g, t in ((g_weight, weight), (g_bias, bias)))
    return outputs.results()[0], g_weight, g_bias
