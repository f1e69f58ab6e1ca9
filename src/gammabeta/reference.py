"""The math of every norm in plain torch: forward, and backward by hand.

Every kernel has to equal this, and it runs where there is no kernel. Nothing here is fast; everything is written once.

    N samples   C channels   S positions, flattened   G groups of channels   D = C/G channels of a group
    n values per statistic (divisor of the variance that standardizes; n − 1 only in running statistics)
    x_NCS has those axes; mean_C has one value per channel; g_z is the gradient of the loss with respect to z

Two families, which differ in the axes of their statistics:
    channel norms   over N and S, one per channel                        BatchNorm
    sample norms    over D and S, one per sample and group of channels   LayerNorm, RMSNorm, GroupNorm, InstanceNorm

Both compute y = activation(γ·x̂ + β + residual), x̂ = (x − μ)/√(σ² + ε), and set y to zero where mask is False.
Arithmetic is in float32 (float64 for float64 x), whatever the dtypes of the operands. y has the dtype to which x and
residual promote.

Sources: Ioffe & Szegedy 2015 (1502.03167), Algorithms 1 and 2 and the chain rule after them, for BatchNorm; Ba, Kiros &
Hinton 2016 (1607.06450), eq. 3, for LayerNorm; Zhang & Sennrich 2019 (1910.07467), eq. 4, for RMSNorm; Ulyanov 2016
(1607.08022) for InstanceNorm; Wu & He 2018 (1803.08494), eq. 1, 2, 6, 7, for GroupNorm and the view that unites them.
"""

from __future__ import annotations

import math
from typing import NamedTuple, overload

import torch
from torch import Tensor

from gammabeta.activations import activate, derivative
from gammabeta.masks import insert_axes
from gammabeta.moments import Moments, statistics_dtype

Gradients = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Gradients of the loss with respect to x, weight, bias and residual; None for one that was not given."""

Affine = tuple[Tensor | None, Tensor | None]
"""Weight γ and bias β; None for one that is absent (1 or 0). A plain tuple, which costs small calls nothing."""


class Axes(NamedTuple):
    """How x of a sample norm is divided: `samples` axes, then `channels` axes, then positions; and groups of channels.

    (N, C, *S) of GroupNorm is (1, 1, G). LayerNorm over the last k axes of x is (x.ndim − k, k, 1), without positions.
    """

    samples: int
    channels: int
    groups: int


class OpFinish(NamedTuple):
    """What a forward op takes after weight and bias, in the order of its schema.

    Attributes:
        residual: of x's shape.
        mask: boolean, x's shape without the channel axes.
        eps: ε, in the squared unit of x.
        activation: a name of `activations.ACTIVATIONS`.
        slope: leaky_relu's for z ≤ 0.
    """

    residual: Tensor | None
    mask: Tensor | None
    eps: float
    activation: str
    slope: float


class _Reduction(NamedTuple):
    """The axes over which a statistic is taken, and how many values count in it."""

    axes: tuple[int, ...]
    counted: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Divide the sum over the axes by the count, 1 at the least."""
        return values.sum(self.axes, keepdim=True) / self.counted.clamp(min=1).to(values.dtype)


def output_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """Return the dtype of y."""
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


# Channel norms: BatchNorm.


def channel_moments(x_NCS: Tensor, mask_NS: Tensor | None) -> Moments:
    """Compute μ_B and σ_B² of every channel (Ioffe & Szegedy 2015, Algorithm 1, lines 1 and 2), as moments."""
    mask_N1S = insert_axes(mask_NS, 1, 2)
    return Moments.of(x_NCS, _all_but_channel(x_NCS), mask_N1S)


def channel_norm_forward(
    x_NCS: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    residual_NCS: Tensor | None,
    mask_NS: Tensor | None,
    eps: float,
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute y, and mean, variance (m2/n; 0 where n is 0) and count of every channel: Algorithm 1, all lines."""
    moments = channel_moments(x_NCS, mask_NS)
    var_C = moments.m2 / moments.count.clamp(min=1).to(moments.m2.dtype)
    y_NCS = channel_apply_forward(
        x_NCS, moments.mean, var_C, weight_C, bias_C, residual_NCS, mask_NS, eps, activation, slope
    )
    return y_NCS, moments.mean, var_C, moments.count.clone()


def channel_apply_forward(
    x_NCS: Tensor,
    mean_C: Tensor,
    var_C: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    residual_NCS: Tensor | None,
    mask_NS: Tensor | None,
    eps: float,
    activation: str,
    slope: float,
) -> Tensor:
    """Compute y from given statistics: Algorithm 1, lines 3 and 4; with running statistics Algorithm 2, line 11."""
    mask_N1S = insert_axes(mask_NS, 1, 2)
    xhat_NCS = _standardize(x_NCS, _over_channels(mean_C, x_NCS), _over_channels(var_C, x_NCS), mask_N1S, eps)
    z_NCS = _scale_and_shift(xhat_NCS, _over_channels(weight_C, x_NCS), _over_channels(bias_C, x_NCS))
    return _finish(z_NCS, residual_NCS, mask_N1S, activation, slope, output_dtype(x_NCS, residual_NCS))


def channel_norm_backward(
    g_y_NCS: Tensor,
    x_NCS: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    residual_NCS: Tensor | None,
    mask_NS: Tensor | None,
    mean_C: Tensor,
    var_C: Tensor,
    count_C: Tensor | None,
    eps: float,
    activation: str,
    slope: float,
) -> Gradients:
    """Compute the gradients of `channel_norm_forward`; with `count_C` None, those of `channel_apply_forward`.

    With σ' = √(σ² + ε) and means over the n values of a channel:

        ∂ℓ/∂x̂ = γ·∂ℓ/∂z
        ∂ℓ/∂x = (∂ℓ/∂x̂ − mean(∂ℓ/∂x̂) − x̂·mean(x̂·∂ℓ/∂x̂)) / σ'
        ∂ℓ/∂x = ∂ℓ/∂x̂ / σ'                                        where the statistics are constants
        ∂ℓ/∂γ = Σ x̂·∂ℓ/∂z
        ∂ℓ/∂β = Σ ∂ℓ/∂z

    These are the six equations after Algorithm 1, with ∂ℓ/∂σ_B² and ∂ℓ/∂μ_B substituted.
    """
    axes = _all_but_channel(x_NCS)
    affine, finish = (weight_C, bias_C), OpFinish(residual_NCS, mask_NS, eps, activation, slope)
    gamma = _over_channels(weight_C, x_NCS)
    xhat_NCS, g_z_NCS = _channel_gradient(g_y_NCS, x_NCS, affine, finish, mean_C, var_C)
    g_xhat_NCS = g_z_NCS if gamma is None else g_z_NCS * gamma
    reduction = None if count_C is None else _Reduction(axes, _over_channels(count_C, x_NCS))
    rstd = _rstd(_over_channels(var_C, x_NCS), xhat_NCS.dtype, eps)
    g_x_NCS = _backward_of_standardize(g_xhat_NCS, xhat_NCS, rstd, reduction, insert_axes(mask_NS, 1, 2), center=True)
    g_weight_C = None if weight_C is None else (xhat_NCS * g_z_NCS).sum(axes).to(weight_C.dtype)
    g_bias_C = None if bias_C is None else g_z_NCS.sum(axes).to(bias_C.dtype)
    g_residual_NCS = None if residual_NCS is None else g_z_NCS.to(residual_NCS.dtype)
    return g_x_NCS.to(x_NCS.dtype), g_weight_C, g_bias_C, g_residual_NCS


def channel_backward_reduce(
    g_y_NCS: Tensor,
    x_NCS: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    residual_NCS: Tensor | None,
    mask_NS: Tensor | None,
    mean_C: Tensor,
    var_C: Tensor,
    eps: float,
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """Compute Σ∂ℓ/∂z and Σx̂·∂ℓ/∂z of every channel, which the backward needs of all processes that share statistics."""
    affine, finish = (weight_C, bias_C), OpFinish(residual_NCS, mask_NS, eps, activation, slope)
    xhat_NCS, g_z_NCS = _channel_gradient(g_y_NCS, x_NCS, affine, finish, mean_C, var_C)
    axes = _all_but_channel(x_NCS)
    return g_z_NCS.sum(axes), (xhat_NCS * g_z_NCS).sum(axes)


def channel_backward_apply(
    g_y_NCS: Tensor,
    x_NCS: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    residual_NCS: Tensor | None,
    mask_NS: Tensor | None,
    mean_C: Tensor,
    var_C: Tensor,
    sum_g_C: Tensor,
    sum_g_xhat_C: Tensor,
    count_C: Tensor,
    eps: float,
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor | None]:
    """Compute ∂ℓ/∂x and ∂ℓ/∂residual from the sums and n of all processes.

    ∂ℓ/∂x = γ/σ'·(∂ℓ/∂z − Σ∂ℓ/∂z/n − x̂·Σx̂·∂ℓ/∂z/n).
    """
    affine, finish = (weight_C, bias_C), OpFinish(residual_NCS, mask_NS, eps, activation, slope)
    xhat_NCS, g_z_NCS = _channel_gradient(g_y_NCS, x_NCS, affine, finish, mean_C, var_C)
    dtype = xhat_NCS.dtype
    n = count_C.clamp(min=1).to(dtype)
    mean_g = _over_channels(sum_g_C.to(dtype) / n, x_NCS)
    mean_g_xhat = _over_channels(sum_g_xhat_C.to(dtype) / n, x_NCS)
    scale_C = torch.rsqrt(var_C.to(dtype) + eps)
    if weight_C is not None:
        scale_C = scale_C * weight_C.to(dtype)
    g_x_NCS = (g_z_NCS - mean_g - xhat_NCS * mean_g_xhat) * _over_channels(scale_C, x_NCS)
    if mask_NS is not None:
        g_x_NCS = torch.where(insert_axes(mask_NS, 1, 2), g_x_NCS, 0.0)
    return g_x_NCS.to(x_NCS.dtype), None if residual_NCS is None else g_z_NCS.to(residual_NCS.dtype)


def _channel_gradient(
    g_y_NCS: Tensor, x_NCS: Tensor, affine: Affine, finish: OpFinish, mean_C: Tensor, var_C: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute x̂ and ∂ℓ/∂z."""
    finish = finish._replace(mask=insert_axes(finish.mask, 1, 2))
    weight_C, bias_C = affine
    affine = _over_channels(weight_C, x_NCS), _over_channels(bias_C, x_NCS)
    mean, var = _over_channels(mean_C, x_NCS), _over_channels(var_C, x_NCS)
    xhat_NCS = _standardize(x_NCS, mean, var, finish.mask, finish.eps)
    return xhat_NCS, _backward_of_finish(g_y_NCS, xhat_NCS, affine, finish)


# Sample norms: LayerNorm, RMSNorm (center=False), GroupNorm, InstanceNorm (groups = C).


def sample_moments(x_NGDS: Tensor, mask_N11S: Tensor | None, center: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean, variance (m2/n; 0 where n is 0) and count of every sample and group.

    Wu & He 2018, eq. 2 over the set of eq. 7. Without `center` the mean is 0 and the variance is the mean square (Zhang
    & Sennrich 2019, eq. 4).
    """
    if center:
        moments = Moments.of(x_NGDS, (2, 3), mask_N11S)
        return moments.mean, moments.m2 / moments.count.clamp(min=1).to(moments.m2.dtype), moments.count.clone()
    x_NGDS = x_NGDS.to(statistics_dtype(x_NGDS.dtype))
    count = torch.full(x_NGDS.shape[:2], x_NGDS.shape[2] * x_NGDS.shape[3], dtype=torch.int64, device=x_NGDS.device)
    if mask_N11S is not None:
        x_NGDS = torch.where(mask_N11S, x_NGDS, 0.0)
        count = (mask_N11S.sum((2, 3)) * x_NGDS.shape[2]).expand(x_NGDS.shape[:2]).clone()
    mean_square = x_NGDS.square().sum((2, 3)) / count.clamp(min=1).to(x_NGDS.dtype)
    return torch.zeros_like(mean_square), mean_square, count


def sample_moments_of(x: Tensor, axes: Axes, mask: Tensor | None, center: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `sample_moments` of x in its own shape."""
    shape = _grouped_shape(x, axes)
    mask_N11S = None if mask is None else mask.reshape(shape[0], 1, 1, shape[3])
    return sample_moments(x.reshape(shape), mask_N11S, center)


def sample_norm_forward(
    x: Tensor,
    sample_axes: int,
    channel_axes: int,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    eps: float,
    activation: str,
    slope: float,
    center: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute y, and mean, variance and count of every sample and group, each (N, G)."""
    axes = Axes(sample_axes, channel_axes, groups)
    shape = _grouped_shape(x, axes)
    x_NGDS = x.reshape(shape)
    mask_N11S = None if mask is None else mask.reshape(shape[0], 1, 1, shape[3])
    mean_NG, var_NG, count_NG = sample_moments_of(x, axes, mask, center)
    xhat_NGDS = _standardize(x_NGDS, mean_NG[:, :, None, None], var_NG[:, :, None, None], mask_N11S, eps)
    z_NGDS = _scale_and_shift(xhat_NGDS, _over_groups(weight, groups), _over_groups(bias, groups))
    residual_NGDS = None if residual is None else residual.reshape(shape)
    y_NGDS = _finish(z_NGDS, residual_NGDS, mask_N11S, activation, slope, output_dtype(x, residual))
    return y_NGDS.reshape(x.shape), mean_NG, var_NG, count_NG


def sample_norm_backward(
    g_y: Tensor,
    x: Tensor,
    sample_axes: int,
    channel_axes: int,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    mean_NG: Tensor,
    var_NG: Tensor,
    count_NG: Tensor,
    eps: float,
    activation: str,
    slope: float,
    center: bool,
) -> Gradients:
    """Compute the gradients of `sample_norm_forward`: those of the channel norm with means over D and S.

    Without `center` there is no term mean(∂ℓ/∂x̂), since no mean was subtracted (Zhang & Sennrich 2019, section 4).
    """
    shape = _grouped_shape(x, Axes(sample_axes, channel_axes, groups))
    x_NGDS, g_y_NGDS = x.reshape(shape), g_y.reshape(shape)
    residual_NGDS = None if residual is None else residual.reshape(shape)
    mask_N11S = None if mask is None else mask.reshape(shape[0], 1, 1, shape[3])
    gamma, beta = _over_groups(weight, groups), _over_groups(bias, groups)
    finish = OpFinish(residual_NGDS, mask_N11S, eps, activation, slope)
    var, count = var_NG[:, :, None, None], count_NG[:, :, None, None]
    xhat_NGDS = _standardize(x_NGDS, mean_NG[:, :, None, None], var, mask_N11S, eps)
    g_z_NGDS = _backward_of_finish(g_y_NGDS, xhat_NGDS, (gamma, beta), finish)
    g_xhat_NGDS = g_z_NGDS if gamma is None else g_z_NGDS * gamma
    rstd, reduction = _rstd(var, xhat_NGDS.dtype, eps), _Reduction((2, 3), count)
    g_x_NGDS = _backward_of_standardize(g_xhat_NGDS, xhat_NGDS, rstd, reduction, mask_N11S, center)
    g_weight = None if weight is None else (xhat_NGDS * g_z_NGDS).sum((0, 3)).reshape(weight.shape).to(weight.dtype)
    g_bias = None if bias is None else g_z_NGDS.sum((0, 3)).reshape(bias.shape).to(bias.dtype)
    g_residual = None if residual is None else g_z_NGDS.reshape(x.shape).to(residual.dtype)
    return g_x_NGDS.reshape(x.shape).to(x.dtype), g_weight, g_bias, g_residual


# The steps that both families share. Statistics and parameters have axes that broadcast against x.


def _standardize(x: Tensor, mean: Tensor, var: Tensor, mask: Tensor | None, eps: float) -> Tensor:
    """Compute x̂ = (x − μ)/√(σ² + ε), Algorithm 1, line 3; 0 where masked, whatever x is there."""
    dtype = statistics_dtype(x.dtype)
    x, mean, var = x.to(dtype), mean.to(dtype), var.to(dtype)
    if mask is None:
        return (x - mean) * torch.rsqrt(var + eps)
    # Masked before the arithmetic: a NaN in the padding would return through the gradient of a later `where`.
    return torch.where(mask, torch.where(mask, x, mean) - mean, 0.0) * torch.rsqrt(var + eps)


def _scale_and_shift(xhat: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """Compute γ·x̂ + β: Algorithm 1, line 4; Wu & He 2018, eq. 6."""
    z = xhat if gamma is None else xhat * gamma.to(xhat.dtype)
    return z if beta is None else z + beta.to(xhat.dtype)


def _add(z: Tensor, residual: Tensor | None, mask: Tensor | None) -> Tensor:
    if residual is None:
        return z
    if mask is not None:
        residual = torch.where(mask, residual, 0.0)
    return z + residual.to(z.dtype)


def _finish(
    z: Tensor, residual: Tensor | None, mask: Tensor | None, activation: str, slope: float, dtype: torch.dtype
) -> Tensor:
    """Compute activation(z + residual), zero where masked, in the output's dtype."""
    y = activate(_add(z, residual, mask), activation, slope).to(dtype)
    return y if mask is None else torch.where(mask, y, 0.0)


def _backward_of_finish(g_y: Tensor, xhat: Tensor, affine: Affine, finish: OpFinish) -> Tensor:
    """Compute ∂ℓ/∂z = ∂ℓ/∂y · activation'(z), with z computed again from x̂; zero where masked."""
    g_z = g_y.to(xhat.dtype)
    if finish.activation != "none":
        z = _add(_scale_and_shift(xhat, *affine), finish.residual, finish.mask)
        g_z = g_z * derivative(z, finish.activation, finish.slope)
    return g_z if finish.mask is None else torch.where(finish.mask, g_z, 0.0)


def _rstd(var: Tensor, dtype: torch.dtype, eps: float) -> Tensor:
    """Compute 1/√(σ² + ε)."""
    return torch.rsqrt(var.to(dtype) + eps)


def _backward_of_standardize(
    g_xhat: Tensor, xhat: Tensor, rstd: Tensor, reduction: _Reduction | None, mask: Tensor | None, center: bool
) -> Tensor:
    """Compute ∂ℓ/∂x from ∂ℓ/∂x̂. Without a reduction the statistics are constants."""
    if reduction is None:
        return g_xhat * rstd
    g_x = g_xhat - xhat * reduction.mean(xhat * g_xhat)
    if center:
        g_x = g_x - reduction.mean(g_xhat)
    g_x = g_x * rstd
    return g_x if mask is None else torch.where(mask, g_x, 0.0)


def _all_but_channel(x_NCS: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x_NCS.ndim))


@overload
def _over_channels(per_channel: Tensor, x_NCS: Tensor) -> Tensor: ...
@overload
def _over_channels(per_channel: None, x_NCS: Tensor) -> None: ...
@overload
def _over_channels(per_channel: Tensor | None, x_NCS: Tensor) -> Tensor | None: ...
def _over_channels(per_channel: Tensor | None, x_NCS: Tensor) -> Tensor | None:
    return None if per_channel is None else per_channel.reshape(1, -1, *(1,) * (x_NCS.ndim - 2))


def _over_groups(per_channel: Tensor | None, groups: int) -> Tensor | None:
    return None if per_channel is None else per_channel.reshape(1, groups, -1, 1)


def _grouped_shape(x: Tensor, axes: Axes) -> tuple[int, int, int, int]:
    """Return (N, G, D, S)."""
    behind = axes.samples + axes.channels
    channels, positions = math.prod(x.shape[axes.samples : behind]), math.prod(x.shape[behind:])
    return math.prod(x.shape[: axes.samples]), axes.groups, channels // axes.groups, positions
