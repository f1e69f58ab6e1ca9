"""The mask of a batch of sequences of several lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lengths_to_mask(lengths: Tensor | Sequence[int], max_length: int | None = None) -> Tensor:
    """mask[i, t] = t < lengths[i]: True where a padded batch of sequences is real, as `mask=` of the layers takes it.

    Args:
        lengths: number of real positions of each sequence, integers, (N,).
        max_length: L, positions of the padded batch; None is the largest length, which waits for the device.

    Returns:
        Boolean, (N, L), on the device of lengths.

    Raises:
        TypeError: lengths are not integers.
        ValueError: lengths are not (N,), one is negative or (where that is known without waiting for a device) over
            max_length.

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
