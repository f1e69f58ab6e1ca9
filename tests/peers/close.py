"""Two results compared: values, and what else a caller can see of a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Relative, and times the largest value of what is compared: two roundings of some ten operations each. Values are held
# against exact ones in tests/conformance.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def assert_alike(actual: Any, expected: Any, about: object = "", scale: float = 1.0) -> None:
    """The same structure of tensors, with the same dtypes, shapes and, to rounding, values."""
    if isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected), about
        for a, e in zip(actual, expected, strict=True):
            assert_alike(a, e, about, scale)
        return
    if expected is None:
        assert actual is None, about
        return
    assert actual.dtype == expected.dtype, f"{about}: {actual.dtype}, expected {expected.dtype}"
    if not expected.is_floating_point():
        assert torch.equal(actual, expected), f"{about}: {actual}, expected {expected}"
        return
    tolerance = TOLERANCES[expected.dtype] * scale
    finite = expected.detach()[expected.detach().isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance * max(largest, 1.0), equal_nan=True,
        msg=lambda text: f"{about}: {text}",
    )  # fmt: skip


def layout(tensor: Tensor) -> tuple[int, ...] | None:
    """The strides of axes that have any: what `view` looks at."""
    if tensor.numel() == 0:
        return None
    return tuple(stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
