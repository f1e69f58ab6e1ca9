"""Who computes a call: the device that its tensors are moved to, and our ops where torch's could run instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from gammabeta import aten, ops

_device = "cpu"


def device() -> str:
    """Return the device of the present route; calls move their tensors there, and results back."""
    return _device


@contextmanager
def on(name: str) -> Iterator[None]:
    """Compute on that device."""
    global _device
    before, _device = _device, name
    try:
        yield
    finally:
        _device = before


@contextmanager
def by_our_ops() -> Iterator[None]:
    """Call our ops wherever they can be called: the kernels where they are registered, else the reference."""
    with (
        patch.object(ops, "has_kernel", lambda device: True),
        patch.object(aten.Finish, "left_to_torch", lambda self, x: False),
    ):
        yield


@contextmanager
def triton_instead_of_kernels() -> Iterator[None]:
    """Make every op with a Triton kernel run it on CPU tensors, interpreted (TRITON_INTERPRET=1)."""
    from gammabeta.kernels.cuda.ops import IMPLEMENTATIONS
    from gammabeta.proof.interpreter import set_up

    set_up()

    def of(name: str) -> Callable[..., Any]:
        # What is registered for CUDA leaves tensors without elements to the default implementation too.
        default = ops.DEFAULTS[name]
        return lambda x, *args: (IMPLEMENTATIONS[name] if x.numel() else default)(x, *args)

    with registered_for_cpu({name: of(name) for name in IMPLEMENTATIONS}):
        yield


@contextmanager
def registered_for_cpu(implementations: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Register implementations of ops for the CPU. Leaving brings back what was registered before."""
    library = torch.library.Library("gammabeta", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
            for name, implementation in implementations.items():
                library.impl(name, implementation, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()
