"""The routes that a call can take: as users get it, by our kernels, or by the reference instead.

On a machine with a GPU there is one more for it. With TRITON_INTERPRET=1 the kernels for the GPU run interpreted in
place of those for the CPU, and there is no other route.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

import gammabeta
from gammabeta.proof import routes
from gammabeta.proof.interpreter import INTERPRETED
from gammabeta.proof.routes import registered_for_cpu, triton_instead_of_kernels

ON_GPU = ("cuda",) if torch.cuda.is_available() and not INTERPRETED else ()

OURS = ("interpreted",) if INTERPRETED else ("ops", "reference") if gammabeta.ops.has_kernel("cpu") else ("reference",)
"""The routes to our ops: to the kernels ("ops"), where they are built, and to the reference that they have to equal."""

ROUTES = OURS if INTERPRETED else ("chosen", *OURS, *ON_GPU)
"""With the route of a user's call ("chosen"): torch's own op for some, ours for others. On a GPU: our kernels."""


@contextmanager
def taken(route: str) -> Iterator[None]:
    """Make all calls in the context take that route."""
    if route == "chosen":
        yield
        return
    others = {"reference": reference_instead_of_kernels, "interpreted": triton_instead_of_kernels}
    with routes.on("cuda" if route == "cuda" else "cpu"), routes.by_our_ops(), others.get(route, nullcontext)():
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


def _default_implementation(name: str) -> Callable[..., Any]:
    """What a device has that no kernel was written for."""
    kernel = torch.library.get_kernel(_op(name), "PrivateUse1")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return lambda *args: kernel.call_boxed(keys, *args)


def _op(name: str) -> Any:
    return getattr(torch.ops.gammabeta, name).default
