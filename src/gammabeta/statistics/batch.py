"""The batch as the source of statistics."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gammabeta.functional import NormCall, normalize_by_batch


@dataclass(frozen=True)
class Batch:
    """μ and σ² (divided by n) of the batch, over samples and positions.

    Source: Ioffe & Szegedy 2015 (1502.03167), Algorithm 1.
    """

    def normalize(self, call: NormCall) -> Tensor:
        return normalize_by_batch(call)
