"""Registration of the Triton kernels as the ops' implementation for CUDA, and when they are used.

It does for ops that are already declared what `torch.library.triton_op` does for an op that it declares itself.
Eagerly, the kernels are launched. While torch.compile traces, an op is replaced by its launches (`wrap_triton`), so
that the compiler sees kernels and not an opaque op. An exported graph keeps the op. Fakes and autograd are those of the
op.

The kernels are imported at the first call with a CUDA tensor, not with gammabeta. Where they cannot be used, or are not
proven, torch's own ops and the default implementations run, and `missing()` says why. They are proven on a GPU by the
certificate of `gammabeta verify` for its model, the versions and these kernels; GAMMABETA_KERNELS=1 uses them without.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import multiprocessing
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gammabeta import ops
from gammabeta.kernels import certificate

LEAST_CAPABILITY = (8, 0)
"""Lowest compute capability of a GPU, as Triton itself requires. Compiled for 8.0 and 9.0, measured on none."""

_library: torch.library.Library | None = None
_refused: set[str] = set()
"""Ops with a kernel that Triton could not compile or launch here."""


def missing() -> str | None:
    """Return why the Triton kernels are not used here, None where they are. May start CUDA."""
    if os.environ.get("GAMMABETA_KERNELS") == "0":
        return "switched off by GAMMABETA_KERNELS=0"
    return incapable() or unproven()


def incapable() -> str | None:
    """Return why the Triton kernels cannot run on the GPUs of this machine, None where they can. May start CUDA."""
    if torch.version.hip is not None:
        return "this torch is built for ROCm, which was never tested"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if torch.cuda.device_count() == 0:
        return "no device answers"
    for device in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            name = torch.cuda.get_device_name(device)
            least, has = (".".join(map(str, c)) for c in (LEAST_CAPABILITY, capability))
            return f"they need GPUs of compute capability {least} or more, and {name} has {has}"
    return None


def identity(device: int) -> certificate.Identity:
    """Return what a certificate of the Triton kernels is about: the GPU of that index, versions, and these files."""
    major, minor = torch.cuda.get_device_capability(device)
    versions = {
        "torch": torch.__version__, "triton": triton_version(), "cuda": str(torch.version.cuda), "driver": _driver(),
        "capability": f"{major}.{minor}",
    }  # fmt: skip
    digest = certificate.digest_of(Path(__file__).parent.glob("*.py"))
    return certificate.Identity("triton", torch.cuda.get_device_name(device), versions, digest)


def unproven() -> str | None:
    """Return why the Triton kernels are not proven on the GPUs of this machine, None where they are or need not be."""
    if os.environ.get("GAMMABETA_KERNELS") == "1":
        return None
    for device in range(torch.cuda.device_count()):
        found = certificate.read(identity(device))
        name = torch.cuda.get_device_name(device)
        if found is None:
            return f"they are not verified on {name} with these versions"
        if not found.passed:
            return f"they failed `gammabeta verify` on {name} on {found.when[:10]}"
    return None


def _driver() -> str:
    """Return the first line of the driver's version file, "unknown" where the system has none."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0].strip()
    except (OSError, IndexError):
        return "unknown"


@functools.cache
def serves() -> bool:
    """Return whether the kernels are used for CUDA tensors. Decided once, at the first CUDA tensor.

    Raises:
        RuntimeError: they are not, and GAMMABETA_KERNELS=1 asks for them.
    """
    reason = missing()
    if reason is None:
        return True
    wanted = os.environ.get("GAMMABETA_KERNELS")
    if wanted == "1":
        raise RuntimeError(
            f"gammabeta: GAMMABETA_KERNELS=1 requires the Triton kernels for CUDA, but {reason}. "
            "Unset it to run without them."
        )
    if wanted != "0" and multiprocessing.parent_process() is None:
        warnings.warn(
            f"gammabeta: the Triton kernels for CUDA are not used: {reason}. Results are still right, by torch's "
            f"own ops and the reference in plain torch. {cure(reason)}GAMMABETA_KERNELS=0 runs without them.",
            RuntimeWarning,
            stacklevel=2,
        )
    return False


def cure(reason: str) -> str:
    """Return what to do where the kernels are not used for that reason, as a sentence; "" where nothing."""
    if reason.startswith("they are not verified"):
        return "`gammabeta verify` checks them in about a minute, and then they are used. "
    if reason.startswith("they failed"):
        return "Please report it with what `gammabeta verify --report` prints. "
    return ""


def triton_version() -> str:
    """Return the version of the installed Triton."""
    return importlib.metadata.version("triton")


@functools.cache
def implementations() -> dict[str, Callable[..., Any]]:
    """Return the ops' implementations by name. Imports the kernels."""
    from torch._library.triton import triton_ops_to_kernels

    from gammabeta.kernels.cuda.ops import IMPLEMENTATIONS, KERNELS

    # torch's caches of compiled code read these to see that a kernel has changed.
    triton_ops_to_kernels.update({f"gammabeta::{name}": KERNELS for name in IMPLEMENTATIONS})
    return IMPLEMENTATIONS


def register() -> None:
    """Register the kernels as the CUDA implementation of the ops, once. Imports no kernel and does not start CUDA."""
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("gammabeta", "IMPL")
    ops.serves["cuda"] = serves
    for name in ops.DEFAULTS:
        _library.impl(name, launching(name), "CUDA")
        register_decomposition(name, _library)


def register_decomposition(name: str, library: torch.library.Library) -> None:
    """Replace the op by its launches while functions are traced."""
    from torch._subclasses.functional_tensor import FunctionalTensorMode

    torch.library.register_torch_dispatch(
        f"gammabeta::{name}", FunctionalTensorMode, functools.partial(decompose, name), lib=library
    )


def launching(name: str) -> Callable[..., Any]:
    """Return the op for tensors. It runs the default implementation where x is empty or the kernels cannot be used."""

    def op(*args: Any) -> Any:
        x: Tensor = args[0]
        if x.numel() == 0 or name in _refused or not serves():
            return ops.DEFAULTS[name](*args)
        ops.CHECKS[name].check_memory(args)
        try:
            # On the device of x, without the tracing that only a compiler needs. If x is not on a GPU, another argument
            # is, and the launcher refuses them.
            with torch.cuda.device(x.device if x.is_cuda else None):
                return launch(name, args)
        except Exception as error:
            refuse(name, error)
            return ops.DEFAULTS[name](*args)

    return op


def refuse(name: str, error: Exception) -> None:
    """Use the op's default implementation from now on, since Triton cannot compile or launch one of its kernels.

    Raises:
        Exception: the error itself, where it is not Triton's or GAMMABETA_KERNELS=1 asks for the kernels.
    """
    from triton.errors import TritonError

    if not isinstance(error, TritonError) or os.environ.get("GAMMABETA_KERNELS") == "1":
        raise error
    _refused.add(name)
    first = next(iter(str(error).splitlines()), "")
    warnings.warn(
        f"gammabeta: the Triton kernel of {name} does not run here: {type(error).__name__}: {first}. From now on "
        "torch's own ops and the reference in plain torch replace it: results are still right, but slower.",
        RuntimeWarning,
        stacklevel=3,
    )


def launch(name: str, args: tuple[Any, ...]) -> Any:
    """Launch the op's kernels, untraced."""
    from torch._library.triton import set_wrap_triton_enabled

    with set_wrap_triton_enabled(False):
        return implementations()[name](*args)


def decompose(name: str, mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """Run the op's launches under the tracing mode, or the op itself where it stays one."""
    from torch.export._trace import custom_triton_ops_decomposition_disabled

    x: Tensor = args[0]
    stays = custom_triton_ops_decomposition_disabled() or name in _refused or x.numel() == 0
    if x.device.type != "cuda" or stays or not serves():
        return mode.__torch_dispatch__(op, types, args, kwargs or {})
    with mode:
        return implementations()[name](*args, **(kwargs or {}))
