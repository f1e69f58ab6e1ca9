"""What the benchmarks on a GPU share: whether there is one, their limits, their parameters."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gammabeta.kernels.cuda import register as cuda

LARGE = 64 << 20  # bytes from which bandwidth is what counts
OF_BANDWIDTH = 0.85  # of a device-to-device copy's


def missing() -> str | None:
    """In a sentence, why nothing can be measured."""
    reason = cuda.missing()
    return None if reason is None else f"it needs a GPU that the kernels for CUDA serve: {reason}"


def liger_missing() -> bool:
    return importlib.util.find_spec("liger_kernel") is None


def limit(floor: float, shape: Sequence[int], dtype: torch.dtype) -> float | None:
    """The most copies that keep 85 % of the bandwidth; None for small tensors."""
    large = math.prod(shape) * dtype.itemsize >= LARGE
    return round(floor / OF_BANDWIDTH, 2) if large else None


def affine(size: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    parameters = (torch.rand(*size, generator=generator) + 0.5, torch.randn(*size, generator=generator))
    return [parameter.to("cuda", dtype).requires_grad_() for parameter in parameters]
