"""What backward reads after `recompute`: tensors that were kept, and tensors that are made again.

A `Remade` is an operation of the forward with what it reads. Its value is made when the first reader in backward asks
for it, and held until the last one has it: a residual is read by a convolution, by a norm, and by the tensors that are
made from it. All versions are checked, as torch checks those of saved tensors where no hooks are in force.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
from torch import Tensor


class Kept:
    """A tensor that is kept, with the version that it had."""

    __slots__ = ("_original", "_tensor", "_version")

    def __init__(self, tensor: Tensor, original: Tensor | None = None) -> None:
        """`original`: what `tensor` is a copy of, whose version counts."""
        self._tensor = tensor
        self._original = tensor if original is None else original
        self._version = self._original._version

    def value(self) -> Tensor:
        """Return the tensor.

        Raises:
            RuntimeError: it was changed in place since.
        """
        original, version = self._original, self._original._version
        if version != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{original.type()} {list(original.shape)}] is at version {version}; expected version "
                f"{self._version} instead. It was kept by gammabeta.recompute, which makes other tensors from it again."
            )
        return self._tensor

    def take(self) -> tuple[Tensor, bool]:
        """Return the tensor, and that it is not the caller's to overwrite."""
        return self.value(), False


class Remade:
    """A tensor that is made again: an operation, and what it reads.

    Attributes:
        depth: how many such tensors have to be made, one from another, for this one.
    """

    __slots__ = ("_lock", "_make", "_readers", "_sources", "_stream", "_strides", "_value", "depth")

    def __init__(
        self, make: Callable[..., Tensor], sources: tuple[Kept | Reader | None, ...], result: Tensor, depth: int
    ) -> None:
        """`make`: called with the sources' values, each with whether it may be overwritten; `result`: what it made."""
        self._make, self._sources, self.depth = make, sources, depth
        self._strides = result.stride()
        self._lock = threading.RLock()
        self._readers: list[ref[Reader]] = []
        self._value: Tensor | None = None
        self._stream: Any = None

    def reader(self, like: Tensor) -> Reader:
        """Return a reader of it that gets what `like` is: the tensor itself or a view."""
        reader = Reader(self, like)
        self._readers.append(ref(reader))
        return reader

    def give(self, reader: Reader) -> tuple[Tensor, bool]:
        """Return the tensor, and whether nobody else has it or will ask for it, so that it may be overwritten."""
        with self._lock:
            if reader.served:  # a second backward
                for other in self._readers:
                    if (found := other()) is not None:
                        found.served = False
            reader.served = True
            value = self._value
            held = value is not None and self._stream == _stream(value)
            if value is None or not held:
                value = self._made()
            last = all((found := other()) is None or found.served for other in self._readers)
            self._value, self._stream = (None, None) if last else (value, _stream(value))
            return value, last and not held

    def _made(self) -> Tensor:
        with torch.no_grad():
            value = self._make(*(None if s is None else s.take() for s in self._sources))
        strides = self._strides
        if value.stride() != strides:
            laid = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)
            value = laid.copy_(value)
        return value


class Reader:
    """One who reads a `Remade` in backward: a saved tensor, or the source of another `Remade`."""

    __slots__ = ("__weakref__", "_geometry", "_remade", "served")

    def __init__(self, remade: Remade, like: Tensor) -> None:
        self._remade = remade
        self._geometry = like.shape, like.stride(), like.storage_offset()
        self.served = False

    @property
    def depth(self) -> int:
        """That of what it reads."""
        return self._remade.depth

    def value(self) -> Tensor:
        """Return the tensor."""
        return self.take()[0]

    def take(self) -> tuple[Tensor, bool]:
        """Return the tensor, and whether the caller may overwrite it."""
        whole, free = self._remade.give(self)
        shape, stride, offset = self._geometry
        if whole.shape == shape and whole.stride() == stride and offset == 0:
            return whole, free
        return whole.as_strided(shape, stride, offset), False


def _stream(tensor: Tensor) -> Any:
    """Return the stream on which a tensor that is made now may be read without waiting."""
    return None if tensor.device.type == "cpu" else torch.accelerator.current_stream(tensor.device.index)
