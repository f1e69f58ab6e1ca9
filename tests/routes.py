"""The routes that a call can take: as users get it, by our kernels, by the reference in their place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

import gammabeta
from gammabeta import functional

OURS = ("ops", "reference") if gammabeta.ops.has_kernel("cpu") else ("reference",)
"""The routes to our ops: to the kernels ("ops"), where they are built, and to the reference that they have to equal."""

ROUTES = ("chosen", *OURS)
"""And what a call of a user takes ("chosen"): torch's own op for some, ours for others."""


@contextmanager
def taken(route: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, all calls take that route."""
    if route == "chosen":
        yield
        return
    patch.setattr("gammabeta.ops.has_kernel", lambda device: True)
    patch.setattr(functional.Finish, "left_to_torch", lambda self, x: False)
    with reference_instead_of_kernels() if route == "reference" else nullcontext():
        yield


def tensor_ops() -> list[str]:
    """The names of all our ops that take a tensor."""
    names = {
        name.removeprefix("gammabeta::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("gammabeta::")
    }
    return sorted(name for name in names if "Tensor" in str(_op(name)._schema).partition("->")[0])


@contextmanager
def reference_instead_of_kernels() -> Iterator[None]:
    """Every op with a kernel for the CPU runs its default implementation there, as if none had been built.

    Through the dispatcher, so that it holds for whoever calls and in compiled code too. Leaving brings the kernels
    back: the dispatcher keeps what was registered before.
    """
    library = torch.library.Library("gammabeta", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
            for name in tensor_ops():
                if torch._C._dispatch_has_kernel_for_dispatch_key(f"gammabeta::{name}", "CPU"):
                    library.impl(name, _default_implementation(name), "CPU", allow_override=True)
        yield
    finally:
        library._destroy()


def _default_implementation(name: str) -> Callable[..., Any]:
    """What a device has that no kernel was written for."""
    kernel = torch.library.get_kernel(_op(name), "PrivateUse1")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return lambda *args: kernel.call_boxed(keys, *args)


def _op(name: str) -> Any:
    return getattr(torch.ops.gammabeta, name).default
