"""Versions and devices of a verification, as its report has them."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from gammabeta import kernels


def described() -> dict[str, str]:
    """Return versions, processor and GPUs by name."""
    own = kernels.identity()
    found = {
        "gammabeta": version_of("gammabeta"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": own.device,
        "native kernels": own.digest if kernels.built() else "not built",
    }
    if torch.version.cuda is not None and torch.cuda.is_available():
        from gammabeta.kernels.cuda import register

        for index in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(index)
            found[f"GPU {index}"] = name
            if register.incapable() is None:
                of_gpu = register.identity(index)
                found |= {key: of_gpu.versions[key] for key in ("triton", "cuda", "driver")}
                found["Triton kernels"] = of_gpu.digest
    return found


def version_of(distribution: str) -> str:
    """Return the installed version of a distribution, "not installed" where it is not."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
