"""The backends of this machine: who can compute a norm here, and the process in which each is verified."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from gammabeta import kernels
from gammabeta.kernels.cuda import register as cuda
from gammabeta.proof.case import Case
from gammabeta.proof.operations import ADD_OPS
from gammabeta.proof.routes import by_our_ops, on, triton_instead_of_kernels

ISAS = {"AVX-512": ("AVX-512", "AVX2", "baseline"), "AVX2": ("AVX2", "baseline"), "NEON": ("NEON", "baseline")}
"""Instruction sets for which a processor that has the first runs kernels."""

BY_TORCH_ON_CPU = ("layer_norm", "rms_norm", *ADD_OPS)


@dataclass(frozen=True)
class Backend:
    """One way to compute norms on this machine.

    Attributes:
        name: as in ``--backend``.
        route: "ops" (our kernels), "reference", "chosen" (torch's ops, as gammabeta uses them without kernels),
            "interpreted" (the Triton kernels on CPU tensors).
        device: torch's name of it.
        environment: variables of the process in which it is verified.
        judged: whether it fails a verification. torch's ops on a GPU are torch's; their errors are only shown.
        certified: the kernels that it is a proof of: "native", "triton" or "".
    """

    name: str
    route: str
    device: str = "cpu"
    environment: dict[str, str] = field(default_factory=dict)
    judged: bool = True
    certified: str = ""

    def runs(self, op: str, case: Case, topic: str) -> bool:
        """Return whether the case says something about this backend."""
        if not case.on("cuda" if self.device != "cpu" and self.route == "ops" else self.route):
            return False
        if topic == "ranks":  # what it adds to the other topics is the same on all of them
            return self.name == backends()[0].name
        if self.route == "chosen" and self.device == "cpu":  # elsewhere it is the reference that computes
            return op in BY_TORCH_ON_CPU and topic not in ("masks", "sources")
        return True


def backends() -> list[Backend]:
    """Return the backends of this machine, the one that serves first. Asks whether CUDA has devices."""
    found = [
        Backend(f"native:{isa}", "ops", "cpu", {"GAMMABETA_KERNELS": "1", "GAMMABETA_ISA": isa.lower()}, True, "native")
        for isa in instruction_sets()
    ]
    found.append(Backend("reference", "reference", environment={"GAMMABETA_KERNELS": "0"}))
    found.append(Backend("torch", "chosen", environment={"GAMMABETA_KERNELS": "0"}))
    for index, device in distinct_devices():
        if cuda.incapable() is None:
            triton = {"GAMMABETA_KERNELS": "1"}
            found.append(Backend(f"triton:{index}", "ops", device, triton, True, "triton"))
        found.append(Backend(f"torch:{index}", "chosen", device, {"GAMMABETA_KERNELS": "0"}, judged=False))
        found.append(Backend(f"reference:{index}", "reference", device, {"GAMMABETA_KERNELS": "0"}))
    return found


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets for which this machine has native kernels, the highest first."""
    if not kernels.built():
        return ()
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX512"):
        return ISAS["AVX-512"]
    if capability == "AVX2":
        return ISAS["AVX2"]
    import platform

    return ISAS["NEON"] if platform.machine() in ("aarch64", "arm64") else ("baseline",)


def distinct_devices() -> list[tuple[int, str]]:
    """Return index and name of the first CUDA device of each model."""
    if torch.version.cuda is None or torch.version.hip is not None or not torch.cuda.is_available():
        return []
    first: dict[str, int] = {}
    for index in range(torch.cuda.device_count()):
        first.setdefault(torch.cuda.get_device_name(index), index)
    return [(index, f"cuda:{index}") for index in first.values()]


def interpreted() -> Backend:
    """Return the Triton kernels on CPU tensors, in Triton's interpreter. Some fifty times as slow; needs numpy."""
    environment = {"GAMMABETA_KERNELS": "0", "TRITON_INTERPRET": "1"}
    return Backend("interpreted", "interpreted", environment=environment)


@contextmanager
def entered(route: str, device: str) -> Iterator[None]:
    """Make all calls in the context take that route on that device."""
    if route == "chosen":
        with on(device):
            yield
        return
    with on(device), by_our_ops(), triton_instead_of_kernels() if route == "interpreted" else nullcontext():
        yield


def environment_of(backend: Backend) -> dict[str, str]:
    """Return the environment of the process in which a backend is verified."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GAMMABETA_")}
    return {**own, **backend.environment}
