"""torch's tensors as the Triton kernels take them: dense, in one of two layouts, results with the fakes' strides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gammabeta.activations import CODES


@dataclass(frozen=True)
class Layout:
    """The layout of x, (N, C, *positions): channels or positions contiguous."""

    channels_contiguous: bool

    def dense(self, t: Tensor) -> Tensor:
        """Return the tensor, copied where it has another layout."""
        if not self.channels_contiguous:
            return t.contiguous()
        last = t.movedim(1, -1)
        return t if last.is_contiguous() else last.contiguous().movedim(-1, 1)

    def optional(self, t: Tensor | None) -> Tensor | None:
        """Do the same for a tensor that may be absent."""
        return None if t is None else self.dense(t)

    def holds(self, t: Tensor) -> bool:
        """Return whether the tensor has this layout."""
        return (t.movedim(1, -1) if self.channels_contiguous else t).is_contiguous()

    def empty(self, like: Tensor) -> Tensor:
        """Return an uninitialized tensor of this layout."""
        if not self.channels_contiguous:
            return torch.empty_like(like, memory_format=torch.contiguous_format)
        return torch.empty_like(like.movedim(1, -1), memory_format=torch.contiguous_format).movedim(-1, 1)


def layout_of(x: Tensor) -> Layout:
    """Choose the layout for x: channels contiguous where x has them so or no positions; else positions."""
    contiguous = x.is_contiguous()
    if x.ndim == 2:
        return Layout(contiguous)
    return Layout(not contiguous and x.movedim(1, -1).is_contiguous())


class Outputs:
    """The results of a kernel: written in the layout of x, returned with the strides that the fakes promise."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._written: list[tuple[Tensor, Tensor]] = []

    def like(self, t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor that a kernel writes to for a result like t."""
        result = torch.empty_like(t, dtype=dtype)
        work = result if self._layout.holds(result) else self._layout.empty(result)
        self._written.append((result, work))
        return work

    def results(self) -> list[Tensor]:
        """Return the results in the order in which they were asked for. To be called after the launches."""
        return [result if work is result else result.copy_(work) for result, work in self._written]


def or_empty(gradient: Tensor | None, x: Tensor) -> Tensor:
    """Return the gradient, or a tensor without elements where it is absent."""
    return x.new_empty(0) if gradient is None else gradient


def dense(t: Tensor | None) -> Tensor | None:
    """Return a parameter, statistic or mask as a contiguous tensor: it may be strided, expanded or absent."""
    return None if t is None else t.contiguous()


def finish_constants(
    x: Tensor, weight: Any, bias: Any, residual: Any, mask: Any, activation: str, slope: float
) -> dict[str, Any]:
    """Return the constants that every kernel with a finish is compiled for."""
    return {
        "HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None,
        "HAS_MASK": mask is not None, "ACTIVATION": CODES[activation],
        "SLOPE": slope if activation == "leaky_relu" else 0.0, "DOUBLE": x.dtype == torch.float64,
    }  # fmt: skip
