"""The batch itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gammabeta.functional import Finish, normalize_by_batch
from gammabeta.running_statistics import RunningStatistics


@dataclass(frozen=True)
class Batch:
    """μ and σ² of the batch, over samples and positions: Ioffe & Szegedy 2015 (1502.03167), Algorithm 1."""

    def normalize(
        self,
        x: Tensor,
        running: RunningStatistics,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        finish: Finish,
    ) -> Tensor:
        return normalize_by_batch(x, running, weight, bias, eps, finish)
