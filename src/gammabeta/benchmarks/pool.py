"""Random tensors of any shape, cut from one block per dtype, so that thousands of rows need no time to fill theirs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LINE = 64  # values between whose multiples tensors begin: a cache line or more of every dtype


class Pool:
    """The blocks. What `tensor` returns stays valid; tensors cut since the same `restart` do not overlap."""

    def __init__(self) -> None:
        self._blocks: dict[torch.dtype, Tensor] = {}
        self._next: dict[torch.dtype, int] = {}

    def restart(self) -> None:
        """Cut from the beginning again: the tensors so far are no longer needed."""
        self._next.clear()

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
        """Return a tensor of random normal values, contiguous or in channels_last."""
        size, start = math.prod(shape), self._next.get(dtype, 0)
        block = self._blocks.get(dtype)
        if block is None or start + size > block.numel():
            # Twice as large, so that growing costs no more than filling the last block. Old tensors keep the old one.
            generator = torch.Generator().manual_seed(0)
            grown = torch.randn(max(2 * (start + size), 1 << 20), generator=generator)
            self._blocks[dtype] = block = grown.to(dtype)
        self._next[dtype] = start + -(-size // LINE) * LINE
        values = block[start : start + size]
        if layout == "contiguous":
            return values.view(shape)
        n, channels, *positions = shape
        return values.view(n, *positions, channels).movedim(-1, 1)
