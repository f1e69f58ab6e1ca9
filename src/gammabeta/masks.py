"""Masks: boolean tensors that mark which values of an input are real.

A norm's mask has the shape of the input without the axes that are always kept whole (the channels, or the normalized
axes). `Moments.of` takes any mask that broadcasts to its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor


def lengths_to_mask(lengths: Tensor | Sequence[int], max_length: int | None = None) -> Tensor:
    """Make the mask of a padded batch of sequences from their lengths: mask[i, t] = t < lengths[i].

    The result is True where the batch is real, which is what the layers' `mask=` expects.

    Args:
        lengths: number of real positions of each sequence, integers, (N,).
        max_length: L, the number of positions of the padded batch. None means the largest length, which waits for the
            device.

    Returns:
        Boolean tensor, (N, L), on the device of `lengths`.

    Raises:
        TypeError: lengths are not integers.
        ValueError: lengths are not (N,), or one is negative or over max_length. The values are checked only where that
            needs no wait for a device.

    Example:
        y = layer(x, mask=gammabeta.lengths_to_mask(lengths, x.shape[2]))  # x (N, C, L)
    """
    lengths = torch.as_tensor(lengths)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths_to_mask: expected integer lengths, got {lengths.dtype}: convert with .long().")
    if lengths.ndim != 1:
        raise ValueError(
            f"lengths_to_mask: expected lengths of shape (N,), got {tuple(lengths.shape)}: one for each sequence."
        )
    if max_length is None:
        max_length = int(lengths.max()) if lengths.numel() > 0 else 0
    if lengths.device.type == "cpu" and lengths.numel() > 0 and not torch.compiler.is_compiling():
        least, most = (int(value) for value in lengths.aminmax())
        if least < 0 or most > max_length:
            wrong = least if least < 0 else most
            raise ValueError(
                f"lengths_to_mask: expected lengths from 0 to max_length = {max_length}, got {wrong}: max_length is "
                "the number of positions that the batch was padded to."
            )
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)


def expand_mask(norm: str, mask: Tensor, x: Tensor, first: int, last: int) -> Tensor:
    """Check a mask and expand it to the shape of x without axes `first` to `last` (exclusive).

    Raises:
        RuntimeError: it is on another device than x.
        TypeError: it is not boolean.
        ValueError: it does not broadcast to that shape.
    """
    shape = (*x.shape[:first], *x.shape[last:])
    if mask.device != x.device:
        raise RuntimeError(
            f"{norm}: Expected all tensors to be on the same device, but found at least two devices, {x.device} "
            f"(input) and {mask.device} (mask): move it with mask.to(input.device)."
        )
    if mask.dtype != torch.bool:
        raise TypeError(
            f"{norm}: expected mask of dtype torch.bool, got {mask.dtype}: True where input is real, mask.bool()."
        )
    padded = _padded_shape(mask, shape)
    if padded is None:
        axes = "the channel axis" if (first, last) == (1, 2) else "the normalized axes"
        raise ValueError(
            f"{norm}: expected mask of shape {shape} or broadcastable to it, got {tuple(mask.shape)}: "
            f"that is input {tuple(x.shape)} without {axes}."
        )
    return mask.reshape(padded).expand(shape)


def full_rank_mask(owner: str, mask: Tensor, x: Tensor) -> Tensor:
    """Check a mask that broadcasts to x, and give it as many axes as x has, without expanding it.

    Raises:
        TypeError: it is not boolean.
        ValueError: it does not broadcast to x.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"{owner}: expected mask of dtype torch.bool, got {mask.dtype}: convert it with mask.bool().")
    padded = _padded_shape(mask, tuple(x.shape))
    if padded is None:
        raise ValueError(
            f"{owner}: expected mask broadcastable to x {tuple(x.shape)}, got {tuple(mask.shape)}: "
            "True marks the values of x that count."
        )
    return mask.reshape(padded)


@overload
def insert_axes(mask: Tensor, first: int, last: int) -> Tensor: ...
@overload
def insert_axes(mask: None, first: int, last: int) -> None: ...
@overload
def insert_axes(mask: Tensor | None, first: int, last: int) -> Tensor | None: ...
def insert_axes(mask: Tensor | None, first: int, last: int) -> Tensor | None:
    """Insert axes of size 1 as axes `first` to `last`, which `expand_mask` has left out: the mask broadcasts to x."""
    if mask is not None:
        for axis in range(first, last):
            mask = mask.unsqueeze(axis)
    return mask


def _padded_shape(mask: Tensor, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The mask's shape with leading axes of size 1 for those it lacks; None where it does not broadcast to `shape`."""
    padded = (1,) * (len(shape) - mask.ndim) + tuple(mask.shape)
    fits = len(padded) == len(shape) and all(m in (1, n) for m, n in zip(padded, shape, strict=True))
    return padded if fits else None
