"""The protocol of sources of statistics."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gammabeta.functional import NormCall


class Statistics(Protocol):
    """A choice of the values from which μ and σ² are taken in training: an immutable setting without tensors."""

    def normalize(self, call: NormCall) -> Tensor:
        """Standardize, scale, shift and finish call.x, and move the running statistics.

        Returns:
            y, of x's shape.
        """
        ...
