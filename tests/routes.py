"""The routes that a call can take: as users get it, by our kernels, or by the reference instead.

On a machine with a GPU there is one more for it. With TRITON_INTERPRET=1 the kernels for the GPU run interpreted in
place of those for the CPU, and there is no other route.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from tests.interpreter import INTERPRETED

import gammabeta
from gammabeta import aten

ON_GPU = ("cuda",) if torch.cuda.is_available() and not INTERPRETED else ()

OURS = ("interpreted",) if INTERPRETED else ("ops", "reference") if gammabeta.ops.has_kernel("cpu") else ("reference",)
"""The routes to our ops: to the kernels ("ops"), where they are built, and to the reference that they have to equal."""

ROUTES = OURS if INTERPRETED else ("chosen", *OURS, *ON_GPU)
"""With the route of a user's call ("chosen"): torch's own op for some, ours for others. On a GPU: our kernels."""

_device = "cpu"


def device() -> str:
    """Return the device of the present route; calls move their tensors there, and results back."""
    return _device


@contextmanager
def taken(route: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make all calls in the context take that route."""
    if route == "chosen":
        yield
        return
    if route == "cuda":
        patch.setattr("tests.routes._device", "cuda")
    patch.setattr("gammabeta.ops.has_kernel", lambda device: True)
    patch.setattr(aten.Finish, "left_to_torch", lambda self, x: False)
    others = {"reference": reference_instead_of_kernels, "interpreted": triton_instead_of_kernels}
    with others.get(route, nullcontext)():
        yield


def tensor_ops() -> list[str]:
    """Return the names of all our ops that take a tensor."""
    names = {
        name.removeprefix("gammabeta::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("gammabeta::")
    }
    return sorted(name for name in names if "Tensor" in str(_op(name)._schema).partition("->")[0])


@contextmanager
def reference_instead_of_kernels() -> Iterator[None]:
    """Make every op with a CPU kernel run its default implementation, as if no kernel had been built.

    Through the dispatcher, so that it holds for whoever calls and in compiled code too. Leaving brings the kernels
    back: the dispatcher keeps what was registered before.
    """
    with registered_for_cpu({name: _default_implementation(name) for name in tensor_ops() if _has_cpu_kernel(name)}):
        yield


def _has_cpu_kernel(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"gammabeta::{name}", "CPU")


@contextmanager
def triton_instead_of_kernels() -> Iterator[None]:
    """Make every op with a Triton kernel run it on CPU tensors, interpreted."""
    from tests.interpreter import set_up

    from gammabeta.kernels.cuda.ops import IMPLEMENTATIONS

    set_up()

    def of(name: str) -> Callable[..., Any]:
        # What is registered for CUDA leaves tensors without elements to the default implementation too.
        default = gammabeta.ops.DEFAULTS[name]
        return lambda x, *args: (IMPLEMENTATIONS[name] if x.numel() else default)(x, *args)

    with registered_for_cpu({name: of(name) for name in IMPLEMENTATIONS}):
        yield


@contextmanager
def registered_for_cpu(implementations: dict[str, Callable[..., Any]]) -> Iterator[None]:
    library = torch.library.Library("gammabeta", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
            for name, implementation in implementations.items():
                library.impl(name, implementation, "CPU", allow_override=True)
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
