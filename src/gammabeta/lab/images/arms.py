"""Arms of a user's model: each arm's norm in place of the model's own BatchNorms."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import gammabeta as gb
from gammabeta.activations import activate
from gammabeta.lab.norms import GHOST_SIZE, NORMS, ChannelRMSNorm, groups


class ArmError(ValueError):
    """An arm's norm cannot replace one of the model's: which one, and why."""


class Unnormalized(nn.Module):
    """activation(x + residual): what remains of a norm without normalization, γ and β."""

    def __init__(self, activation: str | None, activation_slope: float) -> None:
        super().__init__()
        self.activation, self.activation_slope = activation, activation_slope

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z = x if residual is None else x + residual
        return z if self.activation is None else activate(z, self.activation, self.activation_slope)


def batch_norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the model's BatchNorms by name: torch's, gammabeta's and subclasses of both."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def put(model: nn.Module, arm: str) -> None:
    """Replace each BatchNorm of the model by the arm's norm; other norms stay.

    γ, β, ε and the activation stay as the model made them, where the arm has them: ``"rms"`` has only γ, ``"none"`` and
    ``"batch_plain"`` have neither γ nor β. ``"layer"`` normalizes over channels and positions, ``"rms"`` over the
    channels at each position. ``"group"`` has as many groups as :func:`gammabeta.lab.norms.groups` says.

    Args:
        arm: one of ``NORMS``, or ``"ghost:8"`` for another size than 4.

    Raises:
        ArmError: a BatchNorm that cannot be replaced, for example one with its own forward, or a BatchNorm1d by
            InstanceNorm.
        ValueError: an unknown arm.
    """
    kind, _, size = arm.partition(":")
    if kind not in NORMS:
        raise ValueError(f"put: expected one of {', '.join(NORMS)}, got {arm}")
    found = batch_norms(model)
    if not found:
        return
    layers: list[Any] = [layer for _, layer in found]
    # `adopt` also leaves those that were gammabeta's already, which is no failure.
    _all_done(gb.adopt(model, where=layers), [name for name, layer in found if not _is_ours(layer)])
    if kind in ("layer", "instance", "group"):
        for channels in sorted({_channels(layer) for layer in layers}):
            some = [layer for layer in layers if _channels(layer) == channels]
            if kind == "instance" and any(isinstance(layer, nn.BatchNorm1d) for layer in some):
                name = next(name for name, layer in found if isinstance(layer, nn.BatchNorm1d))
                raise ArmError(f"{name}: InstanceNorm of (N, C), a BatchNorm1d's input, has one value per statistic")
            change = gb.convert(model, kind, where=some, groups=groups(channels) if kind == "group" else None)
            _all_done(change, list(change.left))
    elif kind in ("none", "rms"):
        _replace(model, {layer: _unlike(layer, kind) for layer in layers})
    else:
        source: Any = gb.statistics.Batch()
        if kind == "ghost":
            source = gb.statistics.Ghost(int(size or GHOST_SIZE))
        elif kind == "renorm":
            source = gb.statistics.Renorm()
        change = gb.set_statistics(model, source, where=layers)
        _all_done(change, [name for name, layer in found if layer.statistics != source])
        if kind == "batch_plain":
            for layer in layers:
                layer.register_parameter("weight", None)
                layer.register_parameter("bias", None)
                layer.affine = False


def _channels(layer: Any) -> int:
    # After conversion the layer is a GroupNorm.
    return int(layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features)


def _is_ours(layer: nn.Module) -> bool:
    return hasattr(layer, "statistics")


def _all_done(change: Any, wanted: Sequence[str]) -> None:
    """Raise unless everything that was to be changed was changed."""
    for name, reason in change.left.items():
        if name in wanted:
            raise ArmError(f"{name or 'the model'}: {reason}")


def _unlike(layer: Any, kind: str) -> nn.Module:
    """Make the replacement of a BatchNorm that surgery has no class for."""
    if kind == "none":
        return Unnormalized(layer.activation, layer.activation_slope)
    norm = ChannelRMSNorm(
        layer.num_features,
        affine=layer.weight is not None,
        activation=layer.activation,
        activation_slope=layer.activation_slope,
    )
    if layer.weight is not None:
        with torch.no_grad():
            norm.norm.weight.copy_(layer.weight)
    return norm


def _replace(model: nn.Module, by: dict[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in by:
                setattr(parent, name, by[child])
