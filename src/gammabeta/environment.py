"""A report of what gammabeta runs on: versions, processor, devices, kernels, and what torch.compile needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil

import torch

import gammabeta
from gammabeta import kernels
from gammabeta.kernels.cuda import register as cuda

STUDY_DEPENDENCIES = ("numpy", "scipy", "scikit-learn", "joblib", "plotly", "jinja2")
STUDY_MISSING = 'not installed (the study needs it: pip install "gammabeta[study]")'

Rows = list[tuple[str, str]]


def environment() -> dict[str, Rows]:
    """Return sections of (name, value) for people, in the order in which to print them."""
    return {"versions": _versions(), "processor": _processor(), "devices": _devices(), "kernels": _kernels()}


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def compiler() -> str | None:
    """Return the C++ compiler that torch.compile would call on a CPU, None where there is none."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("g++") or shutil.which("clang++")


def _versions() -> Rows:
    rows = [("gammabeta", gammabeta.__version__), ("python", platform.python_version()), ("torch", torch.__version__)]
    return rows + [(name, version_of(name) or STUDY_MISSING) for name in STUDY_DEPENDENCIES]


def _processor() -> Rows:
    return [
        ("system", f"{platform.system()} {platform.machine()}"),
        ("cores", str(os.cpu_count())),
        ("torch threads", f"{torch.get_num_threads()} within an operation, {torch.get_num_interop_threads()} across"),
        ("vector instructions", torch.backends.cpu.get_cpu_capability()),
    ]


def _devices() -> Rows:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [("CUDA", f"{torch.version.cuda}: {', '.join(names)}")]
    if torch.version.cuda is None:
        return [("CUDA", "none: this torch is built without it")]
    return [("CUDA", f"none: torch is built for CUDA {torch.version.cuda}, and no device answers")]


def _kernels() -> Rows:
    return [
        ("CPU", _cpu_kernels()),
        ("CUDA", _cuda_kernels()),
        ("torch.compile", compiler() or "no C++ compiler found: its CPU code needs g++ or clang++"),
    ]


def _cpu_kernels() -> str:
    if kernels.missing is not None:
        return f"none, torch's own ops and the reference in plain torch serve: {kernels.missing}"
    asked = os.environ.get("GAMMABETA_ISA")
    return f"native, for {torch.ops.gammabeta.cpu_instruction_set()}" + (f" (GAMMABETA_ISA={asked})" if asked else "")


def _cuda_kernels() -> str:
    reason = cuda.missing()
    if reason is not None:
        cure = cuda.cure(reason).removesuffix(" ")
        return f"none, torch's own ops and the reference in plain torch serve: {reason}" + (f". {cure}" if cure else "")
    return f"Triton {cuda.triton_version()}, float64, float32, bfloat16 and float16"
