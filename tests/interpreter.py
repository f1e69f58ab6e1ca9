"""Triton's interpreter, in which kernels run on CPU tensors: set up by whoever tests by it.

TRITON_INTERPRET=1 has to be in the environment before a module with kernels is imported: then all kernels of the process
are interpreted, and none is compiled.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def round_bfloat16_to_nearest() -> None:
    """Have the interpreter round float32 to bfloat16 as GPUs do, to nearest, ties to even: it cuts the bits off."""
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source.name, target.name) == ("bf16", "fp32"):
            return (np.asarray(values).view(np.uint16).astype(np.uint32) << 16).reshape(values.shape)
        if (source.name, target.name) != ("fp32", "bf16"):
            return convert(values, source, target, rounding)
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16).reshape(values.shape)

    interpreter._convert_float = converted
