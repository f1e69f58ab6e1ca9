"""The tensors that a norm takes beside its input."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Operands(NamedTuple):
    """The tensors beside x, in the order in which `compute` of plain tensors takes them; None for one that is absent.

    Attributes:
        weight, bias: γ and β.
        residual: of x's shape.
        mask: boolean, as the public functions take it.
    """

    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    mask: Tensor | None
