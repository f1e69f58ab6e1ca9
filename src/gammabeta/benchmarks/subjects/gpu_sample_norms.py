"""LayerNorm, RMSNorm, GroupNorm and InstanceNorm on a GPU, beside Liger-Kernel's where it is installed.

γ and β have x's dtype over words and are float32 over images. The floor reads each input once and writes each output
once. Limits: 85 % of the bandwidth of a device-to-device copy for tensors of 64 MB and more. Times are device times, by
CUDA events.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gammabeta import functional
from gammabeta.benchmarks.contest import LIGER, Field, Row
from gammabeta.benchmarks.gpu import affine, liger_missing, limit, missing
from gammabeta.benchmarks.ring import Inputs, Norm, norm_field

__all__ = ["OTHERS", "UNIT", "missing", "rows"]

UNIT = "copies"
OTHERS = (LIGER,)

WORDS = ((16384, 4096), (8192, 768))
IMAGES = ((256, 256, 56, 56), (256, 512, 28, 28))
GROUPS = 32
EPS = 1e-5
FLOOR = {False: 1.0, True: 1.5}


def rows(quick: bool) -> list[Row]:
    """Return every row; quick: the first shapes, bfloat16 only."""
    words, images = (WORDS[:1], IMAGES[:1]) if quick else (WORDS, IMAGES)
    found = []
    for dtype in (torch.bfloat16,) if quick else (torch.bfloat16, torch.float32):
        for backward in (False, True):
            found += [_over_words(name, shape, dtype, backward) for name in ("LayerNorm", "RMSNorm") for shape in words]
            found += [_sum_of_words(name, WORDS[0], dtype, backward) for name in ("LayerNorm", "RMSNorm")]
            for shape in images:
                layouts = ("contiguous", "channels_last")
                found += [_over_images("GroupNorm", shape, layout, dtype, backward) for layout in layouts]
                found.append(_over_images("InstanceNorm", shape, "contiguous", dtype, backward))
    return found


def _over_words(name: str, shape: tuple[int, ...], dtype: torch.dtype, backward: bool) -> Row:
    size = shape[-1:]
    if name == "LayerNorm":
        ours: Norm = lambda x, w, b: functional.layer_norm(x, size, w, b, EPS)  # noqa: E731
        theirs: Norm = lambda x, w, b: F.layer_norm(x, size, w, b, EPS)  # noqa: E731
        liger = _liger("layer_norm", "LigerLayerNormFunction", lambda x, w, b: (x, w, b, EPS))
    else:
        ours = lambda x, w: functional.rms_norm(x, size, w, EPS)  # noqa: E731
        theirs = lambda x, w: F.rms_norm(x, size, w, EPS)  # noqa: E731
        liger = _liger("rms_norm", "LigerRMSNormFunction", lambda x, w: (x, w, EPS))
    parameters = 2 if name == "LayerNorm" else 1

    def build(compiled: bool) -> Field:
        inputs = Inputs(shape, dtype, parameters=affine(size, dtype)[:parameters], device="cuda")
        return norm_field(ours, theirs, inputs, backward=backward, compiled=compiled, others=liger)

    return _row(_named(name, backward), shape, dtype, "contiguous", build, FLOOR[backward])


def _sum_of_words(name: str, shape: tuple[int, ...], dtype: torch.dtype, backward: bool) -> Row:
    """Build a row of x + residual. Forward reads two tensors and writes two; backward reads three and writes one."""
    size = shape[-1:]

    def ours(x: Tensor, residual: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        norm: Callable[..., Any] = functional.add_layer_norm if name == "LayerNorm" else functional.add_rms_norm
        y, total = norm(x, residual, size, *parameters, EPS)
        return y, total

    def theirs(x: Tensor, residual: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        norm: Callable[..., Tensor] = F.layer_norm if name == "LayerNorm" else F.rms_norm
        return norm(total, size, *parameters, EPS), total

    def build(compiled: bool) -> Field:
        parameters = affine(size, dtype)[: 2 if name == "LayerNorm" else 1]
        inputs = Inputs(shape, dtype, parameters=parameters, count=2, outputs=2, device="cuda")
        return norm_field(ours, theirs, inputs, backward=backward, compiled=compiled)

    return _row(_named(f"x + residual, {name}", backward), shape, dtype, "contiguous", build, 2.0)


def _over_images(name: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype, backward: bool) -> Row:
    if name == "GroupNorm":
        ours: Norm = lambda x, w, b: functional.group_norm(x, GROUPS, w, b, EPS)  # noqa: E731
        theirs: Norm = lambda x, w, b: F.group_norm(x, GROUPS, w, b, EPS)  # noqa: E731
        liger = _liger("group_norm", "LigerGroupNormFunction", lambda x, w, b: (x, w, b, shape[1], GROUPS, EPS))
    else:
        ours = lambda x, w, b: functional.instance_norm(x, None, None, w, b, eps=EPS)  # noqa: E731
        theirs = lambda x, w, b: F.instance_norm(x, None, None, w, b, eps=EPS)  # noqa: E731
        liger = {}

    def build(compiled: bool) -> Field:
        inputs = Inputs(shape, dtype, layout, affine(shape[1:2], torch.float32), device="cuda")
        others = liger if layout == "contiguous" else {}
        return norm_field(ours, theirs, inputs, backward=backward, compiled=compiled, others=others)

    return _row(_named(name, backward), shape, dtype, layout, build, FLOOR[backward])


def _named(name: str, backward: bool) -> str:
    return f"{name}, {'backward' if backward else 'forward'}"


def _row(
    operation: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str,
    build: Callable[[bool], Field],
    floor: float,
) -> Row:
    return Row(operation, shape, dtype, layout, build, floor, limit(floor, shape, dtype))


def _liger(module: str, function: str, arguments: Callable[..., tuple[Any, ...]]) -> dict[str, Norm]:
    """Return Liger-Kernel's function, where it is installed."""
    if liger_missing():
        return {}

    def call(*tensors: Tensor) -> Tensor:
        apply = getattr(importlib.import_module(f"liger_kernel.ops.{module}"), function).apply
        result = apply(*arguments(*tensors))
        y: Tensor = result[0] if isinstance(result, tuple) else result
        return y

    return {LIGER: call}
