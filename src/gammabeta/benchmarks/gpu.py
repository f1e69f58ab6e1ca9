"""Shared parts of the benchmarks on a GPU: whether there is one, limits, parameters."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gammabeta.kernels.cuda import register as cuda

LARGE = 64 << 20  # bytes from which bandwidth matters
OF_BANDWIDTH = 0.85  # share of the bandwidth of a device-to-device copy


def missing() -> str | None:
    """Return why nothing can be measured, in a sentence; None where it can."""
    reason = cuda.missing()
    if reason is None:
        return None
    return f"it needs a GPU on which the CUDA kernels serve: {reason}. {cuda.cure(reason)}".rstrip(". ")


def liger_missing() -> bool:
    """Return whether Liger-Kernel is not installed."""
    return importlib.util.find_spec("liger_kernel") is None


def limit(floor: float, shape: Sequence[int], dtype: torch.dtype) -> float | None:
    """Return the limit in copies that corresponds to 85 % of the bandwidth; None for small tensors."""
    large = math.prod(shape) * dtype.itemsize >= LARGE
    return round(floor / OF_BANDWIDTH, 2) if large else None


def affine(size: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Return random γ and β on the GPU."""
    generator = torch.Generator().manual_seed(1)
    parameters = (torch.rand(*size, generator=generator) + 0.5, torch.randn(*size, generator=generator))
    return [parameter.to("cuda", dtype).requires_grad_() for parameter in parameters]
