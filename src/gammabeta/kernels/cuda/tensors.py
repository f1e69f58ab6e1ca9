"""torch's tensors as the Triton kernels take them: one of two layouts, dense, and results as the fakes promise them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gammabeta.activations import CODES


@dataclass(frozen=True)
class Layout:
    """How the elements of x, (N, C, *positions), lie: channels or positions contiguous."""

    channels_contiguous: bool

    def dense(self, t: Tensor) -> Tensor:
        """The tensor, copied where it does not lie so."""
        if not self.channels_contiguous:
            return t.contiguous()
        last = t.movedim(1, -1)
        return t if last.is_contiguous() else last.contiguous().movedim(-1, 1)

    def holds(self, t: Tensor) -> bool:
        return (t.movedim(1, -1) if self.channels_contiguous else t).is_contiguous()

    def empty(self, like: Tensor) -> Tensor:
        if not self.channels_contiguous:
            return torch.empty_like(like, memory_format=torch.contiguous_format)
        return torch.empty_like(like.movedim(1, -1), memory_format=torch.contiguous_format).movedim(-1, 1)


def layout_of(x: Tensor) -> Layout:
    """Channels contiguous where x lies so already, or has no positions; x in any third layout is copied."""
    contiguous = x.is_contiguous()
    if x.ndim == 2:
        return Layout(contiguous)
    return Layout(not contiguous and x.movedim(1, -1).is_contiguous())


class Outputs:
    """Results that a kernel writes: with the strides that the fakes promise, written in the layout of x."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._written: list[tuple[Tensor, Tensor]] = []

    def like(self, t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """What a kernel writes the result of t's shape and strides to."""
        result = torch.empty_like(t, dtype=dtype)
        work = result if self._layout.holds(result) else self._layout.empty(result)
        self._written.append((result, work))
        return work

    def results(self) -> list[Tensor]:
        """The results, after the kernels were launched, in the order in which they were asked for."""
        return [result if work is result else result.copy_(work) for result, work in self._written]


def or_empty(gradient: Tensor | None, x: Tensor) -> Tensor:
    """A gradient that is not there is a tensor without elements."""
    return x.new_empty(0) if gradient is None else gradient


def dense(t: Tensor | None) -> Tensor | None:
    """What is not of x's shape, and may be strided or expanded: parameters, statistics, a mask."""
    return None if t is None else t.contiguous()


def finish_constants(
    x: Tensor, weight: Any, bias: Any, residual: Any, mask: Any, activation: str, slope: float
) -> dict[str, Any]:
    """What a compilation of a kernel is for."""
    return {
        "HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None,
        "HAS_MASK": mask is not None, "ACTIVATION": CODES[activation],
        "SLOPE": slope if activation == "leaky_relu" else 0.0, "DOUBLE": x.dtype == torch.float64,
    }  # fmt: skip
