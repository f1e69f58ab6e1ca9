"""LayerNorm, RMSNorm, GroupNorm and InstanceNorm forward and backward, and the sums before them in Transformers.

γ and β have x's dtype. `add_layer_norm` and `add_rms_norm` return the norm of x + residual and the sum itself. For
torch both are composed. Backward gets the gradients of both results. The least traffic reads each input once and writes
each output once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gammabeta import functional
from gammabeta.benchmarks.contest import Field, Row
from gammabeta.benchmarks.ring import Inputs, Norm, norm_field

UNIT = "copies"

WORDS = ((8192, 768), (8192, 4096))
IMAGES = ((32, 256, 56, 56), (32, 512, 28, 28))
GROUPS = 32
# backward: the limit, in copies.
FLOAT32, BFLOAT16, GROUP = {False: 1.3, True: 2.0}, {False: 2.0, True: 3.0}, {False: 1.5, True: 2.5}
FLOOR = {False: 1.0, True: 1.5}


def rows(quick: bool) -> list[Row]:
    """Return every row of the limits, then single rows beyond them; quick: the smallest shapes, float32 only."""
    words, images = (WORDS[:1], IMAGES[1:]) if quick else (WORDS, IMAGES)
    layouts = ("contiguous", "channels_last")
    passes = (False, True)
    found = []
    for name in ("LayerNorm", "RMSNorm"):
        found += [_over_words(name, shape, torch.float32, b, FLOAT32[b]) for shape in words for b in passes]
        if not quick:
            found += [_over_words(name, shape, torch.bfloat16, b, BFLOAT16[b]) for shape in words for b in passes]
            found += [_over_words(name, WORDS[0], torch.float16, b) for b in passes]
    found += [_group_norm(shape, layout, b) for shape in images for layout in layouts for b in passes]
    if not quick:
        found += [_instance_norm(IMAGES[0], b) for b in passes]
    found += [_add(name, WORDS[0], b) for name in ("LayerNorm", "RMSNorm") for b in passes]
    return found


def _over_words(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, backward: bool, at_most: float | None = None
) -> Row:
    size = shape[-1:]
    ours: Norm
    theirs: Norm
    if name == "LayerNorm":
        count = 2
        ours = lambda x, w, b: functional.layer_norm(x, size, w, b)  # noqa: E731
        theirs = lambda x, w, b: F.layer_norm(x, size, w, b)  # noqa: E731
    else:
        count = 1
        ours = lambda x, w: functional.rms_norm(x, size, w)  # noqa: E731
        theirs = lambda x, w: F.rms_norm(x, size, w)  # noqa: E731

    def build(compiled: bool) -> Field:
        inputs = Inputs(shape, dtype, parameters=_affine(size, dtype)[:count])
        return norm_field(ours, theirs, inputs, backward=backward, compiled=compiled)

    return Row(f"{name}, {_pass(backward)}", shape, dtype, "contiguous", build, FLOOR[backward], at_most)


def _group_norm(shape: tuple[int, ...], layout: str, backward: bool) -> Row:
    def build(compiled: bool) -> Field:
        return norm_field(
            lambda x, w, b: functional.group_norm(x, GROUPS, w, b),
            lambda x, w, b: F.group_norm(x, GROUPS, w, b),
            Inputs(shape, layout=layout, parameters=_affine(shape[1:2], torch.float32)),
            backward=backward,
            compiled=compiled,
        )

    words = f"GroupNorm, {GROUPS} groups, {_pass(backward)}"
    return Row(words, shape, torch.float32, layout, build, FLOOR[backward], GROUP[backward])


def _instance_norm(shape: tuple[int, ...], backward: bool) -> Row:
    def build(compiled: bool) -> Field:
        return norm_field(
            lambda x, w, b: functional.instance_norm(x, None, None, w, b),
            lambda x, w, b: F.instance_norm(x, None, None, w, b),
            Inputs(shape, parameters=_affine(shape[1:2], torch.float32)),
            backward=backward,
            compiled=compiled,
        )

    return Row(f"InstanceNorm, {_pass(backward)}", shape, torch.float32, "contiguous", build, FLOOR[backward])


def _add(name: str, shape: tuple[int, ...], backward: bool) -> Row:
    size = shape[-1:]

    def composed(norm: Norm) -> Norm:
        def call(x: Tensor, residual: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
            total = x + residual
            y = norm(total, size, *parameters)
            assert isinstance(y, Tensor)
            return y, total

        return call

    ours: Norm
    theirs: Norm
    if name == "LayerNorm":
        ours, theirs, count = lambda x, r, w, b: functional.add_layer_norm(x, r, size, w, b), F.layer_norm, 2
    else:
        ours, theirs, count = lambda x, r, w: functional.add_rms_norm(x, r, size, w), F.rms_norm, 1

    def build(compiled: bool) -> Field:
        inputs = Inputs(shape, parameters=_affine(size, torch.float32)[:count], count=2, outputs=2)
        return norm_field(ours, composed(theirs), inputs, backward=backward, compiled=compiled)

    # Forward reads two and writes two; backward reads two gradients and the sum, and writes one for both inputs.
    return Row(f"x + residual, {name}, {_pass(backward)}", shape, torch.float32, "contiguous", build, 2.0)


def _affine(size: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    parameters = (torch.rand(*size, generator=generator) + 0.5, torch.randn(*size, generator=generator))
    return [parameter.to(dtype).requires_grad_() for parameter in parameters]


def _pass(backward: bool) -> str:
    return "backward" if backward else "forward"
