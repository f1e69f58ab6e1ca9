"""Hooks on modules of every kind, scripted ones included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


def hook_before(module: nn.Module, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
    """Register a forward pre-hook.

    A scripted module refuses `register_forward_pre_hook`, though its call from Python runs such hooks. What is in it
    is called by TorchScript, without hooks.
    """
    return nn.Module.register_forward_pre_hook(module, hook, **options)


def hook_after(module: nn.Module, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
    """Register a forward hook, as `hook_before` does."""
    return nn.Module.register_forward_hook(module, hook, **options)
