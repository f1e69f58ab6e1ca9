"""Triton's interpreter, in which kernels run on CPU tensors: set up by the tests that use it.

TRITON_INTERPRET=1 has to be in the environment before a module with kernels is imported: then all kernels of the
process are interpreted, and none is compiled.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def set_up() -> None:
    """Have the interpreter round as GPUs do, and call functions of ours without preparing Triton's language each
    time."""
    from triton.runtime import interpreter

    if interpreter._convert_float.__module__ != __name__:
        _round_bfloat16_to_nearest(interpreter)
        _call_functions_directly(interpreter)


def _round_bfloat16_to_nearest(interpreter: Any) -> None:
    """Round from float32, ties to even; the interpreter truncates."""
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


def _call_functions_directly(interpreter: Any) -> None:
    """A launch has prepared `triton.language`; what its own functions use stays prepared after their first call."""
    prepared: set[int] = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        names = self.fn.__globals__
        if id(names) not in prepared and not names["__name__"].startswith("gammabeta."):
            interpreter._patch_lang(self.fn)
            prepared.add(id(names))
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
