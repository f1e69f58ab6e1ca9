"""What a source of statistics is to the layer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gammabeta.functional import NormCall


class Statistics(Protocol):
    """Chooses the values that μ and σ² are taken from in training. An immutable setting, without tensors of its own."""

    def normalize(self, call: NormCall) -> Tensor:
        """Standardize, scale, shift and finish call.x, and move the running statistics."""
        ...
