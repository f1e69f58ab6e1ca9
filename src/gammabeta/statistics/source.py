"""What a source of statistics is to the layer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gammabeta.functional import Finish
from gammabeta.running_statistics import RunningStatistics


class Statistics(Protocol):
    """Chooses the values that μ and σ² are taken from in training. An immutable setting, without tensors of its own."""

    def normalize(
        self,
        x: Tensor,
        running: RunningStatistics,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        finish: Finish,
    ) -> Tensor:
        """x standardized, scaled, shifted and finished; moves the running statistics. Arguments are checked."""
        ...
