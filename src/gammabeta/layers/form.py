"""What a norm of another library computes: the value that describes it, and that a layer of ours computes by."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

OUTPUT, INPUT, WEIGHT, PROMOTED = "output", "input", "weight", "promoted"
CONTIGUOUS, PRESERVED, MOVED = "contiguous", "preserved", "moved"
LOW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Form:
    """The formula of a norm: y = (offset + weight)·x̂ + bias, with x̂ over one axis of each sample.

        "rms": x̂ = x/√(mean(x²) + ε)      "layer": x̂ = (x − μ)/√(σ² + ε)
        "batch": x̂ = (x − running_mean)/√(running_var + ε), in training too

    Attributes:
        kind: "rms", "layer" or "batch".
        size: the number of values of the axis.
        eps: ε.
        axis: -1, or 1 for the channels of (N, C, *).
        weight, bias: the names of the Parameters (of "batch": also of buffers); None for what there is not.
        offset: 0.0 where the scale is the weight, 1.0 where it is 1 + weight, as Gemma's.
        rounds: where a 16-bit input's result is rounded. `OUTPUT`: once, at the end, to the input's dtype. `INPUT`: x̂
            is rounded to the input's dtype and then multiplied, as Llama's. `WEIGHT`: x̂ is rounded to the weight's
            dtype if that has 16 bits, and then multiplied, as T5's. `PROMOTED`: as `OUTPUT`, to the dtype that input
            and Parameters promote to.
        rounds_scale: whether offset + weight is rounded to the weight's dtype.
        layout: how the output lies in memory. `CONTIGUOUS`; `PRESERVED`: as the input, which elementwise operations
            keep; `MOVED`: contiguous with the axis moved to the end, where a class permutes its input.
        same_bits: whether 16-bit results of the module itself are rounded there and nowhere else.
        argument: the name of the forward's argument.
        epsilon: the attribute from which the forward reads ε; None where there is none.
        ranks: with axis 1, the numbers of axes of the inputs that were compared.
    """

    kind: str
    size: int
    eps: float
    axis: int = -1
    weight: str | None = None
    bias: str | None = None
    offset: float = 0.0
    rounds: str = OUTPUT
    rounds_scale: bool = False
    layout: str = field(default=PRESERVED, compare=False)
    same_bits: bool = True
    ranks: tuple[int, ...] = field(default=(), compare=False)
    argument: str = field(default="input", compare=False)
    epsilon: str | None = field(default=None, compare=False)

    def scale(self, weight: Tensor | None) -> Tensor | None:
        """Return offset + weight as a vector, in the dtype in which the module adds them."""
        if weight is None:
            return None
        weight = weight.reshape(-1)
        if self.offset == 0.0:
            return weight
        return self.offset + (weight if self.rounds_scale or weight.dtype not in LOW else weight.float())

    def laid_out(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y with the strides that the module's output has for x."""
        if y.is_nested:
            return y
        if self.layout == CONTIGUOUS:
            return y.contiguous()
        if self.layout == MOVED:
            return y.movedim(self.axis, -1).contiguous().movedim(-1, self.axis)
        if x.is_contiguous():
            return y.contiguous()
        order = by_stride(x)
        return y.permute(order).contiguous().permute([order.index(axis) for axis in range(x.ndim)])

    def rounded_to(self, x: torch.dtype, weight: torch.dtype | None) -> torch.dtype | None:
        """Return the 16-bit dtype that x̂ is rounded to before it is multiplied; None where it is not."""
        if weight is None or self.rounds not in (INPUT, WEIGHT):
            return None
        middle = x if self.rounds == INPUT else weight
        return middle if middle in LOW else None

    def result(self, x: torch.dtype, *parameters: Tensor | None) -> torch.dtype:
        """Return the dtype of the output."""
        if self.rounds == OUTPUT:
            return x
        given = [p.dtype for p in parameters if p is not None]
        out = x
        if self.rounds == WEIGHT and given:
            out = given[0] if given[0] in LOW else torch.promote_types(x, torch.float32)
        for dtype in given:
            out = torch.promote_types(out, dtype)
        return out


def by_stride(x: Tensor) -> list[int]:
    """Return the axes of x, the outermost in memory first.

    By comparisons alone: a compiler that keeps sizes open cannot sort by them.
    """
    order: list[int] = []
    for axis in range(x.ndim):
        place = len(order)
        while place > 0 and x.stride(order[place - 1]) < x.stride(axis):
            place -= 1
        order.insert(place, axis)
    return order
