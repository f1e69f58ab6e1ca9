"""A module's own parameters, buffers and children by name, whatever holds them: a scripted module has no dicts."""

from __future__ import annotations

from torch import Tensor, nn


def parameter_of(module: nn.Module, name: str) -> nn.Parameter | None:
    """Return the module's own parameter of that name; None where there is none."""
    return dict(module._parameters.items()).get(name)


def buffer_of(module: nn.Module, name: str) -> Tensor | None:
    """Return the module's own buffer of that name; None where there is none."""
    return dict(module._buffers.items()).get(name)


def child_of(module: nn.Module, name: str) -> nn.Module | None:
    """Return the module's child of that name; None where there is none."""
    return dict(module._modules.items()).get(name)
