"""Norms of NestedTensors, whose samples differ in length: all samples' rows become one plain tensor, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gammabeta._torch_private import known_lengths, ragged_axis
from gammabeta.arguments import nested_refusal
from gammabeta.subclasses.operands import Operands

Compute = Callable[..., Tensor]


def by_rows(norm: str, compute: Compute, axes: int | None, x: Tensor, operands: Operands) -> Tensor:
    """Do the work of `parts.by_parts` for NestedTensors.

    Raises:
        ValueError: the samples differ in the norm's axes, or the residual or mask is not nested as x is.
    """
    if axes is None:
        raise nested_refusal(norm)
    for name, tensor in (("residual", operands.residual), ("mask", operands.mask)):
        if tensor is not None and not (tensor.is_nested and tensor.layout == x.layout):
            raise ValueError(
                f"{norm}: expected {name} nested as input is, of layout {x.layout}, got "
                f"{f'layout {tensor.layout}' if tensor.is_nested else 'a tensor that is not nested'}: the samples "
                "have lengths of their own."
            )
    return (_jagged if x.layout == torch.jagged else _strided)(norm, compute, axes, x, operands)


def _jagged(norm: str, compute: Compute, axes: int, x: Any, operands: Operands) -> Tensor:
    """Normalize the values of x: a plain tensor in which the samples lie one after the other."""
    weight, bias = operands.weight, operands.bias
    residual: Any = operands.residual
    mask: Any = operands.mask
    ragged = ragged_axis(x)
    if x.ndim - axes <= ragged:
        raise ValueError(
            f"{norm}: expected normalized axes of the same size in every sample, got the last {axes} of {x.ndim} axes, "
            f"of which axis {ragged} differs: normalize fewer axes, or transpose the input."
        )
    offsets, lengths, values = x.offsets(), x.lengths(), x.values()
    for name, tensor, shape in (("residual", residual, x.shape), ("mask", mask, x.shape[: x.ndim - axes])):
        if tensor is not None and (tensor.shape != shape or (lengths is not None and tensor.offsets() is not offsets)):
            raise ValueError(
                f"{norm}: expected {name} of shape {tuple(shape)} with input's offsets, got {tuple(tensor.shape)}: "
                "make it with torch.nested.nested_tensor_from_jagged(values, input.offsets(), input.lengths())."
            )
    real = None if mask is None else mask.values()
    if lengths is not None:
        # The values between the samples belong to none of them, and may be NaN.
        inside = _inside(offsets, lengths, values.shape[ragged - 1])
        inside = inside.reshape(-1, *(1,) * (values.ndim - axes - ragged))
        real = inside if real is None else real & inside
    y = compute(values, weight, bias, None if residual is None else residual.values(), real)
    shortest, longest = known_lengths(x)
    return torch.nested.nested_tensor_from_jagged(
        y, offsets, lengths, jagged_dim=ragged, min_seqlen=shortest, max_seqlen=longest
    )


def _inside(offsets: Tensor, lengths: Tensor, rows: int) -> Tensor:
    """Return whether each row belongs to a sample."""
    row = torch.arange(rows, device=offsets.device)
    sample = torch.searchsorted(offsets[1:], row, right=True).clamp(max=lengths.shape[0] - 1)
    return row < (offsets[:-1] + lengths)[sample]


def _strided(norm: str, compute: Compute, axes: int, x: Tensor, operands: Operands) -> Tensor:
    """Normalize the samples' rows in one copy.

    torch's own layer norm takes such a tensor only if it is contiguous and has weight and bias; torch's other norms do
    not take it.
    """
    weight, bias, residual, mask = operands
    samples = x.unbind()
    if len(samples) == 0:
        return x.clone()
    normalized = {s.shape[s.ndim - axes :] for s in samples}
    if len(normalized) > 1:
        raise ValueError(
            f"{norm}: expected normalized axes of the same size in every sample, got "
            f"{', '.join(str(tuple(shape)) for shape in sorted(normalized))}: normalize fewer axes."
        )
    shapes = [s.shape for s in samples]
    residuals = None if residual is None else _of_shapes(norm, "residual", residual, shapes)
    masks = None if mask is None else _of_shapes(norm, "mask", mask, [s[: len(s) - axes] for s in shapes])
    tail = shapes[0][len(shapes[0]) - axes :]
    y = compute(
        torch.cat([s.reshape(-1, *tail) for s in samples]),
        weight,
        bias,
        None if residuals is None else torch.cat([r.reshape(-1, *tail) for r in residuals]),
        None if masks is None else torch.cat([m.reshape(-1) for m in masks]),
    )
    rows = y.split([math.prod(s[: len(s) - axes]) for s in shapes])
    return torch.nested.as_nested_tensor(
        [r.reshape(shape) for r, shape in zip(rows, shapes, strict=True)], layout=torch.strided
    )


def _of_shapes(norm: str, name: str, tensor: Tensor, shapes: list[torch.Size]) -> tuple[Tensor, ...]:
    parts = tensor.unbind()
    if [p.shape for p in parts] != shapes:
        raise ValueError(
            f"{norm}: expected {name} with samples of {[tuple(s) for s in shapes]}, got "
            f"{[tuple(p.shape) for p in parts]}: they go with those of input one by one."
        )
    return parts
