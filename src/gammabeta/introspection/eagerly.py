"""Passes in which what is compiled runs eagerly, since compiled code calls no hooks and hides its operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType

import torch

from gammabeta._torch_private import compiler_loaded
from gammabeta.layers.integrations.on_import import on_import

_blocks: list[ExitStack] = []
"""The blocks that run while the compiler is not loaded, outermost first."""


@contextmanager
def eagerly() -> Iterator[None]:
    """Run what is compiled eagerly inside the block.

    The compiler is not loaded for that. If a forward inside the block is the first to compile something, and so loads
    the compiler, what it compiles runs eagerly from then on.
    """
    with ExitStack() as stack:
        if compiler_loaded():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
            return
        _blocks.append(stack)
        try:
            yield
        finally:
            _blocks.remove(stack)


def _join(_: ModuleType) -> None:
    for stack in _blocks:
        stack.enter_context(torch.compiler.set_stance("force_eager"))


on_import("torch._dynamo", _join)
