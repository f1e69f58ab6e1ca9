"""Our layers in the tables of Opacus, which look classes up exactly: validators, fixers and per-sample gradients.

They are registered when `opacus` is imported. Nothing is imported here, and without Opacus nothing happens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.activations import derivative
from gammabeta.functional import group_norm, instance_norm, layer_norm, rms_norm
from gammabeta.layers.batch_norm import _BatchNorm
from gammabeta.layers.group_norm import GroupNorm
from gammabeta.layers.instance_norm import _InstanceNorm
from gammabeta.layers.integrations.class_tables import TORCHS, Enter, add_table
from gammabeta.layers.layer_norm import LayerNorm
from gammabeta.layers.rms_norm import RMSNorm

_OURS = {torchs: ours for ours, torchs in TORCHS.items()}


def _tables(opacus: ModuleType) -> Enter:
    validator = importlib.import_module("opacus.validators").ModuleValidator
    register_grad_sampler = importlib.import_module("opacus.grad_sample").register_grad_sampler

    def enter(cls: type[nn.Module], ours: type[nn.Module]) -> None:
        torchs = TORCHS[ours]
        if torchs in validator.VALIDATORS:
            validator.VALIDATORS[cls] = validator.VALIDATORS[torchs]
        if torchs in validator.FIXERS:
            fix = validator.FIXERS[torchs]
            validator.FIXERS[cls] = _fixer(fix) if issubclass(ours, _BatchNorm) else fix
        if not issubclass(ours, _BatchNorm):
            register_grad_sampler(cls)(grad_sample)

    return enter


def _fixer(fix: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Wrap a fixer of Opacus so that the layer it makes becomes one of ours and keeps the activation."""

    def fix_ours(module: Any, **options: Any) -> nn.Module:
        fixed: Any = fix(module, **options)
        if module.activation is not None:
            fixed.__class__ = _OURS[type(fixed)]  # just made: nobody else has it
            fixed.activation = module.activation
            fixed.activation_slope = module.activation_slope
        mended: nn.Module = fixed
        return mended

    return fix_ours


@torch.no_grad()
def grad_sample(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Compute gradients of γ and β for each sample of our GroupNorm, LayerNorm, InstanceNorm or RMSNorm.

    With z = x̂·γ + β and y = activation(z), for each sample g_z = g_y·activation′(z), g_γ = Σ g_z·x̂ and g_β = Σ g_z,
    summed over all axes that γ and β do not have. The layers refuse a mask, and a residual with an activation, which
    Opacus does not pass on (`unseen_by_opacus`).

    Args:
        layer: the layer.
        activations: x (N, …), and the other arguments of the call.
        backprops: the gradient of the loss with respect to the output, (N, …).

    Returns:
        For each Parameter that requires a gradient (N, *its shape), in its dtype.
    """
    x, weight, bias = activations[0], layer.weight, getattr(layer, "bias", None)
    arithmetic = torch.promote_types(x.dtype, torch.float32)
    x, g_z = x.to(arithmetic), backprops.to(arithmetic)
    normalized = _standardized(layer, x)
    channels_first = not isinstance(layer, LayerNorm | RMSNorm)
    if layer.activation is not None:
        z = normalized
        if weight is not None:
            z = z * _along(weight, x, channels_first)
        if bias is not None:
            z = z + _along(bias, x, channels_first)
        g_z = g_z * derivative(z, layer.activation, layer.activation_slope)
    found = {}
    for parameter, per_value in ((weight, g_z * normalized), (bias, g_z)):
        if parameter is not None and parameter.requires_grad:
            kept = 2 if channels_first else x.dim() - parameter.dim()
            summed = tuple(range(2, x.dim()) if channels_first else range(1, kept))
            per_sample = per_value.sum(summed) if summed else per_value
            found[parameter] = per_sample.to(parameter.dtype)
    return found


def _standardized(layer: Any, x: Tensor) -> Tensor:
    if isinstance(layer, GroupNorm):
        return group_norm(x, layer.num_groups, None, None, layer.eps)
    if isinstance(layer, _InstanceNorm):
        return instance_norm(x, eps=layer.eps)
    if isinstance(layer, RMSNorm):
        return rms_norm(x, layer.normalized_shape, None, layer.eps)
    return layer_norm(x, layer.normalized_shape, None, None, layer.eps)


def _along(parameter: Tensor, x: Tensor, channels_first: bool) -> Tensor:
    return parameter.reshape(-1, *[1] * (x.dim() - 2)) if channels_first else parameter


add_table("opacus", _tables)
