"""A record of the collectives that a piece of code makes, with their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gammabeta._torch_private import TorchDispatchMode

_NOT_COLLECTIVES = ("wait_tensor", "_wrap_tensor_autograd")


class Traffic(TorchDispatchMode):
    """A context that records every collective this process makes through torch: its name and the bytes it sends.

    Attributes:
        seen: (name, bytes), in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace in ("c10d", "_c10d_functional") and func._opname not in _NOT_COLLECTIVES:
            given = args[0] if args else []
            tensors = [given] if isinstance(given, Tensor) else [t for t in given if isinstance(t, Tensor)]
            self.seen.append((func._opname, sum(t.numel() * t.element_size() for t in tensors)))
        return func(*args, **(kwargs or {}))

    @property
    def bytes(self) -> int:
        return sum(count for _, count in self.seen)
