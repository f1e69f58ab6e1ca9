"""The ops as differentiable functions.

Saved for backward are x, the vectors of statistics and parameters, and the residual where an activation's derivative
needs it: never a second copy of x. A backward that is itself differentiated (create_graph=True) takes the moments from
x again and runs the reference, which is differentiable. The statistics returned beside y are constants.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gammabeta import ops, reference
from gammabeta._torch_private import forward_mode_active, transforms_active
from gammabeta.arguments import laid_out
from gammabeta.distributed.collectives import all_reduce
from gammabeta.distributed.process_groups import Peers
from gammabeta.masks import insert_axes
from gammabeta.moments import Moments
from gammabeta.reference import Affine, Axes, OpFinish
from gammabeta.subclasses import parts as subclasses

_ops = torch.ops.gammabeta


def exporting() -> bool:
    """Return whether a graph of standard ops is made for another program: by torch.export, ONNX or torch.jit.trace."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def plain_math(x: Tensor) -> bool:
    """Return whether autograd goes through the reference's own operations instead of through an op.

    functorch and forward-mode AD need that. So do torch.jit.trace, which can save no autograd Function, and tensor
    classes that may handle none of our ops. Where there is no kernel, a compiler fuses plain operations better.
    """
    if torch.compiler.is_compiling():
        if not ops.has_kernel(x.device.type):
            return True
    elif torch.jit.is_tracing():
        return True
    return transforms_active() or forward_mode_active() or subclasses.knows_only_torch(x)


def _differentiated(*tensors: Tensor | None) -> bool:
    """Return whether any tensor needs a gradient. Where none does, the op alone takes 2/3 of the Function's time."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def _given(gradient: Tensor | None, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else gradient


def _of_residual(g_y: Tensor, mask: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    """Compute ∂ℓ/∂residual where there is no activation: the gradient of y, zero where masked."""
    if dtype is None:
        return None
    g = g_y.to(dtype)
    return g if mask is None else torch.where(mask, g, 0.0)


class _ChannelNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, bias: Any, residual: Any, mask: Any, eps: Any, activation: Any, slope: Any
    ) -> Any:
        y, mean, var, count = _ops.channel_norm_forward(
            laid_out(x), weight, bias, residual, mask, eps, activation, slope
        )
        ctx.mark_non_differentiable(mean, var, count)
        ctx.residual_dtype = None if residual is None else residual.dtype
        ctx.settings = eps, activation, slope
        ctx.save_for_backward(x, weight, bias, residual if activation != "none" else None, mask, mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, g_y: Any, *_: Any) -> Any:
        x, weight, bias, residual, mask, mean, var, count = ctx.saved_tensors
        eps, activation, slope = ctx.settings
        if torch.is_grad_enabled():
            moments = reference.channel_moments(x, mask)
            var = moments.m2 / count.clamp(min=1).to(moments.m2.dtype)
            g_x, g_weight, g_bias, g_residual = reference.channel_norm_backward(
                g_y, x, weight, bias, residual, mask, moments.mean, var, count, eps, activation, slope
            )
        else:
            g_x, g_weight, g_bias, g_residual = _ops.channel_norm_backward(
                g_y, x, weight, bias, residual, mask, mean, var, count, eps, activation, slope
            )
        if residual is None:
            g_residual = _of_residual(g_y, insert_axes(mask, 1, 2), ctx.residual_dtype)
        return g_x, _given(g_weight, weight), _given(g_bias, bias), g_residual, None, None, None, None


def _inline(x: Tensor) -> bool:
    """Return whether a compiler should see the reference's operations, not an op that it cannot look into."""
    return torch.compiler.is_compiling() and not ops.has_kernel(x.device.type)


class _ChannelNormGiven(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, mean: Any, var: Any, count: Any, weight: Any, bias: Any, residual: Any, mask: Any, eps: Any,
        activation: Any, slope: Any, name: Any, size: Any,
    ) -> Any:  # fmt: skip
        ctx.residual_dtype = None if residual is None else residual.dtype
        ctx.settings = eps, activation, slope
        ctx.peers = name, size
        ctx.save_for_backward(x, weight, bias, residual if activation != "none" else None, mask, mean, var, count)
        apply = reference.channel_apply_forward if _inline(x) else _ops.channel_apply_forward
        return apply(laid_out(x), mean, var, weight, bias, residual, mask, eps, activation, slope)

    @staticmethod
    def backward(ctx: Any, g_y: Any) -> Any:
        x, weight, bias, residual, mask, mean, var, count = ctx.saved_tensors
        name, size = ctx.peers
        peers = None if name is None else Peers(name, size)
        differentiable = torch.is_grad_enabled()
        if differentiable:
            moments = reference.channel_moments(x, mask)
            if peers is not None:
                moments = _of_all(moments, peers)
            mean, count = moments.mean, moments.count
            var = moments.m2 / count.clamp(min=1).to(moments.m2.dtype)
        by_reference = differentiable or _inline(x)
        reduce, apply = (
            (reference.channel_backward_reduce, reference.channel_backward_apply)
            if by_reference
            else (_ops.channel_backward_reduce, _ops.channel_backward_apply)
        )
        given = g_y, x, weight, bias, residual, mask, mean, var
        sum_g, sum_g_xhat = reduce(*given, *ctx.settings)
        g_weight = None if weight is None else sum_g_xhat.to(weight.dtype)
        g_bias = None if bias is None else sum_g.to(bias.dtype)
        g_x = g_residual = None
        if ctx.needs_input_grad[0] and peers is not None:
            sum_g, sum_g_xhat = all_reduce(torch.stack((sum_g, sum_g_xhat)), peers).unbind()
        if ctx.needs_input_grad[0] or residual is not None:
            g_x, g_residual = apply(*given, sum_g, sum_g_xhat, count, *ctx.settings)
        if residual is None:
            g_residual = _of_residual(g_y, insert_axes(mask, 1, 2), ctx.residual_dtype)
        return g_x, None, None, None, g_weight, g_bias, g_residual, None, None, None, None, None, None


def _of_all(moments: Moments, peers: Peers) -> Moments:
    """Merge the moments of every process's x, (C,). All channels have one count, which is sent once."""
    merged = Moments(moments.count[:1], moments.mean, moments.m2).of_all(peers)
    return Moments(merged.count.expand(merged.mean.shape).contiguous(), merged.mean, merged.m2)


class _ChannelApply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        mean: Any,
        var: Any,
        weight: Any,
        bias: Any,
        residual: Any,
        mask: Any,
        eps: Any,
        activation: Any,
        slope: Any,
    ) -> Any:
        ctx.residual_dtype = None if residual is None else residual.dtype
        ctx.settings = eps, activation, slope
        ctx.save_for_backward(x, weight, bias, residual if activation != "none" else None, mask, mean, var)
        return _ops.channel_apply_forward(laid_out(x), mean, var, weight, bias, residual, mask, eps, activation, slope)

    @staticmethod
    def backward(ctx: Any, g_y: Any) -> Any:
        x, weight, bias, residual, mask, mean, var = ctx.saved_tensors
        eps, activation, slope = ctx.settings
        backward = reference.channel_norm_backward if torch.is_grad_enabled() else _ops.channel_norm_backward
        g_x, g_weight, g_bias, g_residual = backward(
            g_y, x, weight, bias, residual, mask, mean, var, None, eps, activation, slope
        )
        if residual is None:
            g_residual = _of_residual(g_y, insert_axes(mask, 1, 2), ctx.residual_dtype)
        return g_x, None, None, _given(g_weight, weight), _given(g_bias, bias), g_residual, None, None, None, None


class _SampleNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, sample_axes: Any, channel_axes: Any, groups: Any, weight: Any, bias: Any, residual: Any,
        mask: Any, eps: Any, activation: Any, slope: Any, center: Any, channels_last: Any,
    ) -> Any:  # fmt: skip
        y, mean, var, count = _ops.sample_norm_forward(
            laid_out(x, channels_last=channels_last),
            sample_axes,
            channel_axes,
            groups,
            weight,
            bias,
            residual,
            mask,
            eps,
            activation,
            slope,
            center,
        )
        ctx.mark_non_differentiable(mean, var, count)
        ctx.residual_dtype = None if residual is None else residual.dtype
        ctx.axes = Axes(sample_axes, channel_axes, groups)
        ctx.settings = eps, activation, slope, center
        ctx.save_for_backward(x, weight, bias, residual if activation != "none" else None, mask, mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, g_y: Any, *_: Any) -> Any:
        x, weight, bias, residual, mask, mean, var, count = ctx.saved_tensors
        axes = ctx.axes
        backward: Any = _ops.sample_norm_backward
        if torch.is_grad_enabled():
            mean, var, count = reference.sample_moments_of(x, axes, mask, ctx.settings[3])
            backward = reference.sample_norm_backward
        g_x, g_weight, g_bias, g_residual = backward(
            g_y, x, *axes, weight, bias, residual, mask, mean, var, count, *ctx.settings
        )
        if residual is None:
            broadcast = insert_axes(mask, axes.samples, axes.samples + axes.channels)
            g_residual = _of_residual(g_y, broadcast, ctx.residual_dtype)
        gradients = _given(g_weight, weight), _given(g_bias, bias), g_residual
        return g_x, None, None, None, *gradients, None, None, None, None, None, None


class _AddSampleNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, residual: Any, channel_axes: Any, weight: Any, bias: Any, eps: Any, center: Any
    ) -> Any:
        y, total, mean, var, count = _ops.add_sample_norm_forward(x, residual, channel_axes, weight, bias, eps, center)
        ctx.dtypes = x.dtype, residual.dtype
        ctx.settings = channel_axes, eps, center
        ctx.save_for_backward(total, weight, bias, mean, var, count)
        return y, total

    @staticmethod
    def backward(ctx: Any, g_y: Any, g_total: Any) -> Any:
        total, weight, bias, mean, var, count = ctx.saved_tensors
        channel_axes, eps, center = ctx.settings
        axes = Axes(total.ndim - channel_axes, channel_axes, 1)
        if torch.is_grad_enabled():
            mean, var, count = reference.sample_moments_of(total, axes, None, center)
            g, g_weight, g_bias, _ = reference.sample_norm_backward(
                g_y, total, *axes, weight, bias, None, None, mean, var, count, eps, "none", 0.0, center
            )
            g = g + g_total
        else:
            g, g_weight, g_bias = _ops.add_sample_norm_backward(
                g_y, g_total, total, channel_axes, weight, bias, mean, var, count, eps, center
            )
        dtype, residual_dtype = ctx.dtypes
        gradients = _given(g_weight, weight), _given(g_bias, bias)
        return g.to(dtype), g.to(residual_dtype), None, *gradients, None, None


def channel_norm(x: Tensor, affine: Affine, finish: OpFinish) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `reference.channel_norm_forward`, differentiable: y, and mean, variance and count as constants."""
    if plain_math(x):
        y, *statistics = reference.channel_norm_forward(x, *affine, *finish)  # type: ignore[arg-type]
        mean, var, count = (s.detach() for s in statistics)
        return y, mean, var, count
    if not _differentiated(x, *affine, finish.residual):
        results: tuple[Tensor, Tensor, Tensor, Tensor] = _ops.channel_norm_forward(laid_out(x), *affine, *finish)
        return results
    results = _ChannelNorm.apply(x, *affine, _distinct(finish.residual, x), *finish[1:])
    return results


@torch.no_grad()
def channel_moments(x: Tensor, mask: Tensor | None, peers: Peers | None = None) -> Moments:
    """Compute `reference.channel_moments`, as constants; with peers those of every process's x, by one all-gather."""
    if peers is not None:
        _refuse_transforms(peers)
    if plain_math(x):
        moments = reference.channel_moments(x, mask)
    else:
        mean, m2, count = _ops.channel_moments(x, mask)
        moments = Moments(count, mean, m2)
    return moments if peers is None else _of_all(moments, peers)


def _refuse_transforms(peers: Peers) -> None:
    if transforms_active() or forward_mode_active():
        raise RuntimeError(
            "batch_norm: expected statistics of this process only inside a torch.func transform or forward-mode AD, "
            f"got Synced over {peers.size} processes, which neither differentiates through: use torch.autograd, or "
            "gammabeta.statistics.Batch() there."
        )


def channel_norm_given(
    x: Tensor, moments: Moments, affine: Affine, finish: OpFinish, peers: Peers | None = None
) -> Tensor:
    """Compute `reference.channel_norm_forward` with moments taken before, by `channel_moments(x, mask, peers)`.

    In the forward they are constants. The backward knows that they come from x, and with peers from every process's x.
    It sums Σ∂ℓ/∂z and Σx̂·∂ℓ/∂z over the processes, by one all-reduce, so ∂ℓ/∂x is that of the sum of all processes'
    losses. ∂ℓ/∂γ and ∂ℓ/∂β are this process's own sums, as those of every other layer's parameters are; whoever
    synchronizes parameters adds or averages them.

    Raises:
        RuntimeError: with peers, inside a torch.func transform or forward-mode AD, which do not reach other processes.
    """
    if peers is None and plain_math(x):
        y, *_ = reference.channel_norm_forward(x, *affine, *finish)  # type: ignore[arg-type]
        return y
    if peers is not None:
        _refuse_transforms(peers)
    var = moments.m2 / moments.count.clamp(min=1).to(moments.m2.dtype)
    name, size = (None, 1) if peers is None else peers
    residual = _distinct(finish.residual, x)
    given = x, moments.mean, var, moments.count
    out: Tensor = _ChannelNormGiven.apply(*given, *affine, residual, *finish[1:], name, size)
    return out


def channel_apply(x: Tensor, mean: Tensor, var: Tensor, affine: Affine, finish: OpFinish) -> Tensor:
    """Compute `reference.channel_apply_forward`, differentiable with respect to all but the statistics.

    Compiled, it is elementwise operations, which fuse with their surroundings.
    """
    if torch.compiler.is_compiling() or plain_math(x):
        return reference.channel_apply_forward(x, mean.detach(), var.detach(), *affine, *finish)  # type: ignore[arg-type]
    if not _differentiated(x, *affine, finish.residual):
        y: Tensor = _ops.channel_apply_forward(laid_out(x), mean, var, *affine, *finish)
        return y
    y = _ChannelApply.apply(x, mean, var, *affine, _distinct(finish.residual, x), *finish[1:])
    return y


def sample_norm(
    x: Tensor, axes: Axes, affine: Affine, finish: OpFinish, center: bool, channels_last: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `reference.sample_norm_forward`, differentiable: y, and mean, variance and count as constants.

    `channels_last`: whether y keeps that layout, which torch's LayerNorm and InstanceNorm do not.
    """
    if plain_math(x):
        y, *statistics = reference.sample_norm_forward(x, *axes, *affine, *finish, center)  # type: ignore[arg-type]
        mean, var, count = (s.detach() for s in statistics)
        return y, mean, var, count
    if not _differentiated(x, *affine, finish.residual):
        x = laid_out(x, channels_last=channels_last)
        results: tuple[Tensor, Tensor, Tensor, Tensor] = _ops.sample_norm_forward(x, *axes, *affine, *finish, center)
        return results
    residual = _distinct(finish.residual, x)
    results = _SampleNorm.apply(x, *axes, *affine, residual, *finish[1:], center, channels_last)
    return results


def add_sample_norm(
    x: Tensor, residual: Tensor, channel_axes: int, affine: Affine, eps: float, center: bool
) -> tuple[Tensor, Tensor]:
    """Compute (norm(x + residual), x + residual), both differentiable."""
    if plain_math(x):
        y, total, *_ = ops.add_sample_norm_forward(x, residual, channel_axes, *affine, eps, center)
        return y, total
    results: tuple[Tensor, Tensor] = _AddSampleNorm.apply(x, _distinct(residual, x), channel_axes, *affine, eps, center)
    return results


def _distinct(residual: Any, x: Tensor) -> Any:
    """Return the residual as another tensor object than x: Dynamo takes no tensor twice in one Function."""
    return residual.view_as(residual) if residual is x else residual
