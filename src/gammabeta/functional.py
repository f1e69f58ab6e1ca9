"""The public functions: torch.nn.functional's norms with a residual, an activation and a mask.

Signatures are torch's, then keyword-only
    residual         added to norm(x) before the activation, of x's shape
    activation       None, "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu"; activation_slope for leaky_relu
    mask             boolean, True where x is real; masked values enter no statistic and are zero in the output

Each function checks its arguments and chooses who computes. Where our kernels are built, the ops of ops.py do. torch's
own ops run only where they are as accurate and faster (kernels.leaves_to_torch, aten.takes), and without a kernel on
devices other than the CPU. An exported or traced graph has torch's standard ops wherever there is no mask. In a
compiled graph the choice does not depend on the size of x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gammabeta import arguments, aten, autograd, ops
from gammabeta._torch_private import transforms_active
from gammabeta.aten import Finish
from gammabeta.moments import Moments, statistics_dtype
from gammabeta.reference import Affine, Axes
from gammabeta.running_statistics import RunningStatistics
from gammabeta.subclasses.parts import by_channels, by_parts, in_parts, knows_only_torch


@dataclass(slots=True)
class NormCall:
    """One call of a BatchNorm in training, its arguments checked: what a source of statistics gets.

    Attributes:
        x: (N, C) or (N, C, *positions).
        running: the running statistics, which the source moves.
        affine: γ and β, (C,).
        eps: ε, in the squared unit of x.
        finish: residual, activation and mask.
    """

    x: Tensor
    running: RunningStatistics
    affine: Affine
    eps: float
    finish: Finish


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    activation_slope: float = 0.01,
    mask: Tensor | None = None,
) -> Tensor:
    """Normalize each channel: y = activation((x − μ)/√(σ² + ε)·weight + bias + residual).

    In training μ and σ² (divided by n) are those of the batch over all axes but 1, and the running statistics move by
    new = (1 − momentum)·old + momentum·batch, with the variance divided by n − 1. Channels whose batch statistics are
    not finite keep their running ones. In evaluation μ and σ² are the running statistics. Statistics and arithmetic are
    float32 (float64 for float64 x).

    Args:
        input: x, (N, C) or (N, C, *positions), floating point, any layout.
        running_mean, running_var: (C,), updated in place in training; None to keep none.
        weight, bias: γ and β, (C,), any floating dtype; None means 1 and 0.
        training: whether to normalize by the batch.
        momentum: weight of the batch in the running statistics, 0 to 1.
        eps: ε, in the squared unit of x.
        residual: of x's shape; y has the dtype to which x and residual promote.
        activation, activation_slope: see the module's documentation.
        mask: boolean, x's shape without axis 1 or broadcastable to it: (N, L) for x (N, C, L).

    Returns:
        y, of x's shape and memory format.

    Raises:
        ValueError: shapes that do not fit; one value per channel or ε ≤ 0 in training; an unknown activation.
        TypeError: a dtype that is not supported.

    Source: Ioffe & Szegedy 2015 (1502.03167), Algorithms 1 and 2.
    """
    affine, statistics = (weight, bias), (running_mean, running_var)
    arguments.check_channels("batch_norm", input, affine, statistics, residual)
    finish = Finish("batch_norm", residual, activation, activation_slope, mask)
    if not training:
        return normalize_by_running(input, statistics, affine, eps, finish)
    running = RunningStatistics(running_mean, running_var, momentum)
    normalize = by_channels(normalize_by_batch) if in_parts(input, weight) else normalize_by_batch
    return normalize(NormCall(input, running, affine, eps, finish))


def normalize_by_running(
    x: Tensor, statistics: tuple[Tensor | None, Tensor | None], affine: Affine, eps: float, finish: Finish
) -> Tensor:
    """Compute BatchNorm's forward in evaluation: Algorithm 2, line 11. The arguments are checked.

    `statistics` are the running mean and the running variance.
    """
    mean, var = statistics
    if mean is None or var is None:
        raise ValueError(
            f"{finish.norm}: expected running_mean and running_var where the input's own statistics are not used, "
            "got None: pass them, or have it normalize by the input."
        )
    arguments.check_eps(finish.norm, eps, positive=False)
    if in_parts(x, affine[0]):
        normalize = by_channels(
            lambda c: normalize_by_running(c.x, (c.running.mean, c.running.var), c.affine, c.eps, c.finish)
        )
        return normalize(NormCall(x, RunningStatistics(mean, var, held=True), affine, eps, finish))
    if (mean.requires_grad or var.requires_grad) and torch.is_grad_enabled():
        raise RuntimeError(
            f"{finish.norm}: expected running_mean and running_var that require no gradient, got "
            f"{'running_mean' if mean.requires_grad else 'running_var'} that does: they are constants, and the "
            "derivative for them is not implemented. Pass them detached."
        )
    if finish.left_to_torch(x) and aten.takes(finish.norm, x, *affine):
        x_, mean_, var_, *affine_ = aten.for_batch_norm(x, mean, var, *affine)
        return finish.composed(aten.batch_norm(x_, (mean_, var_), affine_, False, 0.0, eps), x.dtype)
    return autograd.channel_apply(x, mean, var, affine, finish.of_channels(x, eps))


def normalize_by_batch(call: NormCall) -> Tensor:
    """Compute BatchNorm's forward in training, Algorithm 1, and move the running statistics."""
    x, running, affine, eps, finish = call.x, call.running, call.affine, call.eps, call.finish
    arguments.check_values_per_channel(x)
    arguments.check_eps("batch_norm", eps, positive=True)
    if finish.left_to_torch(x) and aten.takes(finish.norm, x, *affine):
        x_, *affine_ = aten.for_batch_norm(x, *affine)
        if not running.tracked:
            return finish.composed(aten.batch_norm(x_, (None, None), affine_, True, 0.0, eps), x.dtype)
        if autograd.exporting() and running.momentum is not None:
            if running.num_batches_tracked is not None:
                running.num_batches_tracked.add_(1)
            y = aten.batch_norm(x_, (running.mean, running.var), affine_, True, running.momentum, eps)
            return finish.composed(y, x.dtype)
        if not transforms_active():
            # With a momentum of 1 torch's op returns the batch's own mean and variance (divided by n − 1).
            mean = torch.zeros(x.shape[1], dtype=statistics_dtype(x.dtype), device=x.device)
            var = torch.zeros_like(mean)
            y = aten.batch_norm(x_, (mean, var), affine_, True, 1.0, eps)
            count = None
            if running.gathered is not None:
                n = x.numel() // x.shape[1]
                count, var = torch.full(mean.shape, n, device=x.device), var * ((n - 1) / n)
            running.update(mean, var, count)
            return finish.composed(y, x.dtype)
    y, mean, var, count = autograd.channel_norm(x, affine, finish.of_channels(x, eps))
    running.update(mean, var, count)
    return y


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    activation_slope: float = 0.01,
    mask: Tensor | None = None,
) -> Tensor:
    """Normalize each channel of each sample: y = activation((x − μ)/√(σ² + ε)·weight + bias + residual).

    With use_input_stats μ and σ² (divided by n) are taken over the positions. The running statistics, if given, move
    towards their averages over the samples (the variances divided by n − 1). Otherwise μ and σ² are the running ones.

    Args:
        input: x, (N, C, *positions), floating point, any layout.
        running_mean, running_var: (C,), updated in place with use_input_stats; None to keep none.
        weight, bias: γ and β, (C,).
        use_input_stats: whether to normalize by the sample.
        momentum: weight of the batch in the running statistics, 0 to 1.
        eps: ε, in the squared unit of x.
        residual, activation, activation_slope: see the module's documentation.
        mask: boolean, (N, *positions) or broadcastable to it.

    Returns:
        y, of x's shape.

    Raises:
        ValueError: shapes that do not fit, one position with use_input_stats, an unknown activation.
        TypeError: a dtype that is not supported.

    Source: Ulyanov, Vedaldi & Lempitsky 2016 (1607.08022); Wu & He 2018 (1803.08494), eq. 5.
    """
    affine, statistics = (weight, bias), (running_mean, running_var)
    arguments.check_channels("instance_norm", input, affine, statistics, residual)
    finish = Finish("instance_norm", residual, activation, activation_slope, mask)
    if not use_input_stats:
        if not in_parts(input, weight):
            input = arguments.laid_out(input, channels_last=False)
        return normalize_by_running(input, statistics, affine, eps, finish)
    tracked = running_mean is not None or running_var is not None
    if not tracked and finish.overridden(input, weight, bias):
        return F.instance_norm(input, None, None, weight, bias, True, momentum, eps)
    if in_parts(input, weight):
        if not tracked:
            return by_parts(instance_norm, None, input, {"eps": eps}, affine, finish)

        def of_part(call: NormCall) -> Tensor:
            return instance_norm(
                call.x, call.running.mean, call.running.var, *call.affine, True, momentum, eps,
                residual=call.finish.residual, activation=activation, activation_slope=activation_slope,
                mask=call.finish.mask,
            )  # fmt: skip

        normalize = by_channels(of_part)
        return normalize(NormCall(input, RunningStatistics(running_mean, running_var), affine, eps, finish))
    arguments.check_values_per_instance(input)
    arguments.check_eps("instance_norm", eps, positive=False)
    if finish.left_to_torch(input) and aten.takes(finish.norm, input, weight, bias):
        x, weight_, bias_ = aten.in_one_dtype(input, weight, bias)
        if autograd.exporting():
            y = F.instance_norm(x, running_mean, running_var, weight_, bias_, True, momentum, eps)
            return finish.composed(y, input.dtype)
        if not tracked:
            # Not by torch's instance_norm: its gradient is wrong for one image where that of y is channels_last.
            return finish.composed(torch.group_norm(x, input.shape[1], weight_, bias_, eps), input.dtype)
    axes = Axes(1, 1, max(input.shape[1], 1))
    y, mean, var, count = autograd.sample_norm(
        input, axes, affine, finish.of_channels(input, eps), True, channels_last=False
    )
    if tracked and input.shape[1] > 0:
        # A sample with fewer than two values that count contributes no statistics.
        contributes = count > 1
        samples = contributes.sum(0).to(mean.dtype)
        unbiased_var = Moments(count, mean, var * count.to(var.dtype)).var(correction=1)
        RunningStatistics(running_mean, running_var, momentum).update(
            torch.where(contributes, mean, 0.0).sum(0) / samples,
            torch.where(contributes, unbiased_var, 0.0).sum(0) / samples,
        )
    return y


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    activation_slope: float = 0.01,
    mask: Tensor | None = None,
) -> Tensor:
    """Normalize each group of channels of each sample: y = activation((x − μ)/√(σ² + ε)·weight + bias + residual).

    μ and σ² are taken over the channels of the group and all positions; σ² is divided by n.

    Args:
        input: x, (N, C, *positions), floating point, any layout.
        num_groups: G, a divisor of C.
        weight, bias: γ and β, (C,).
        eps: ε, in the squared unit of x.
        residual, activation, activation_slope: see the module's documentation.
        mask: boolean, (N, *positions) or broadcastable to it.

    Returns:
        y, of x's shape.

    Raises:
        ValueError: shapes that do not fit, groups that do not divide the channels, an unknown activation.
        TypeError: a dtype that is not supported.

    Source: Wu & He 2018 (1803.08494), eq. 1, 2, 6 and 7.
    """
    affine, finish = (weight, bias), Finish("group_norm", residual, activation, activation_slope, mask)
    if finish.overridden(input, weight, bias):
        return F.group_norm(input, num_groups, weight, bias, eps)
    if in_parts(input, weight):
        return by_parts(group_norm, None, input, {"num_groups": num_groups, "eps": eps}, affine, finish)
    arguments.check_channels("group_norm", input, affine, (None, None), residual)
    arguments.check_groups(num_groups, input)
    arguments.check_eps("group_norm", eps, positive=False)
    if finish.left_to_torch(input) and aten.takes(finish.norm, input, weight, bias):
        x, weight_, bias_ = aten.in_one_dtype(input, weight, bias)
        return finish.composed(torch.group_norm(x, num_groups, weight_, bias_, eps), input.dtype)
    y, *_ = autograd.sample_norm(input, Axes(1, 1, num_groups), affine, finish.of_channels(input, eps), True)
    return y


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    activation_slope: float = 0.01,
    mask: Tensor | None = None,
) -> Tensor:
    """Normalize the last axes of each sample: y = activation((x − μ)/√(σ² + ε)·weight + bias + residual).

    Args:
        input: x, (*samples, *normalized_shape), floating point.
        normalized_shape: the sizes of the normalized axes; σ² is divided by their product.
        weight, bias: γ and β, of normalized_shape.
        eps: ε, in the squared unit of x.
        residual, activation, activation_slope: see the module's documentation.
        mask: boolean, of x's shape without the normalized axes or broadcastable to it: (N, L) for x (N, L, C).

    Returns:
        y, of x's shape.

    Raises:
        ValueError: shapes that do not fit, an unknown activation.
        TypeError: a dtype that is not supported.

    Source: Ba, Kiros & Hinton 2016 (1607.06450), eq. 3.
    """
    affine, finish = (weight, bias), Finish("layer_norm", residual, activation, activation_slope, mask)
    if finish.overridden(input, weight, bias):
        return F.layer_norm(input, list(normalized_shape), weight, bias, eps)
    if in_parts(input, weight):
        settings = {"normalized_shape": normalized_shape, "eps": eps}
        return by_parts(layer_norm, len(normalized_shape), input, settings, affine, finish)
    arguments.check_normalized("layer_norm", input, normalized_shape, weight, bias, residual)
    arguments.check_eps("layer_norm", eps, positive=False)
    if finish.left_to_torch(input) and aten.takes(finish.norm, input, weight, bias, math.prod(normalized_shape)):
        x, weight_, bias_ = aten.in_one_dtype(input, weight, bias)
        return finish.composed(aten.layer_norm(x, normalized_shape, weight_, bias_, eps), input.dtype)
    k = len(normalized_shape)
    axes = Axes(input.ndim - k, k, 1)
    y, *_ = autograd.sample_norm(input, axes, affine, finish.of_samples(input, k, eps), True, channels_last=False)
    return y


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    activation_slope: float = 0.01,
    mask: Tensor | None = None,
) -> Tensor:
    """Divide by the root mean square of the last axes: y = activation(x/√(mean(x²) + ε)·weight + residual).

    Args:
        input: x, (*samples, *normalized_shape), floating point.
        normalized_shape: the sizes of the normalized axes.
        weight: γ, of normalized_shape.
        eps: ε, in the squared unit of x; None means the machine epsilon of the
            arithmetic: 1.2e-7, also for 16-bit x (2.2e-16 for float64 x).
        residual, activation, activation_slope: see the module's documentation.
        mask: boolean, of x's shape without the normalized axes or broadcastable to it.

    Returns:
        y, of x's shape.

    Raises:
        ValueError: shapes that do not fit, an unknown activation.
        TypeError: a dtype that is not supported.

    Source: Zhang & Sennrich 2019 (1910.07467), eq. 4.
    """
    affine, finish = (weight, None), Finish("rms_norm", residual, activation, activation_slope, mask)
    if finish.overridden(input, weight):
        return F.rms_norm(input, list(normalized_shape), weight, eps)
    if in_parts(input, weight):
        settings = {"normalized_shape": normalized_shape, "eps": eps}
        return by_parts(rms_norm, len(normalized_shape), input, settings, affine, finish)
    arguments.check_normalized("rms_norm", input, normalized_shape, weight, None, residual)
    eps = _rms_eps(input.dtype) if eps is None else eps
    arguments.check_eps("rms_norm", eps, positive=False)
    if finish.left_to_torch(input) and aten.takes(finish.norm, input, weight):
        x, weight_ = aten.in_one_dtype(input, weight)
        return finish.composed(torch.rms_norm(x, normalized_shape, weight_, eps), input.dtype)
    k = len(normalized_shape)
    y, *_ = autograd.sample_norm(input, Axes(input.ndim - k, k, 1), affine, finish.of_samples(input, k, eps), False)
    return y


def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Compute (layer_norm(x + residual), x + residual), with which a pre-norm Transformer block continues.

    Args:
        input: x, (*samples, *normalized_shape), floating point.
        residual: the residual stream, to which x is added, of x's shape.
        normalized_shape, weight, bias, eps: those of `layer_norm`.

    Returns:
        y and the sum, both of x's shape and of the dtype to which x and residual promote.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: a dtype that is not supported.

    Source: Ba, Kiros & Hinton 2016 (1607.06450), eq. 3.
    """
    if not in_parts(input, weight):
        arguments.check_normalized("add_layer_norm", input, normalized_shape, weight, bias, residual)
        arguments.check_eps("add_layer_norm", eps, positive=False)
        if not autograd.exporting() and ops.has_kernel(input.device.type) and not knows_only_torch(input):
            return autograd.add_sample_norm(input, residual, len(normalized_shape), (weight, bias), eps, True)
    total = input + residual
    return layer_norm(total, normalized_shape, weight, bias, eps), total


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute (rms_norm(x + residual), x + residual), with which a pre-norm Transformer block continues.

    Args:
        input: x, (*samples, *normalized_shape), floating point.
        residual: the residual stream, to which x is added, of x's shape.
        normalized_shape, weight, eps: those of `rms_norm`.

    Returns:
        y and the sum, both of x's shape and of the dtype to which x and residual promote.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: a dtype that is not supported.

    Source: Zhang & Sennrich 2019 (1910.07467), eq. 4.
    """
    eps = _rms_eps(torch.promote_types(input.dtype, residual.dtype)) if eps is None else eps
    if not in_parts(input, weight):
        arguments.check_normalized("add_rms_norm", input, normalized_shape, weight, None, residual)
        arguments.check_eps("add_rms_norm", eps, positive=False)
        if not autograd.exporting() and ops.has_kernel(input.device.type) and not knows_only_torch(input):
            return autograd.add_sample_norm(input, residual, len(normalized_shape), (weight, None), eps, False)
    total = input + residual
    return rms_norm(total, normalized_shape, weight, eps), total


def _rms_eps(dtype: torch.dtype) -> float:
    return torch.finfo(statistics_dtype(dtype)).eps
