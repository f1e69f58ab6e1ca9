"""The batch, corrected towards the running statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gammabeta import arguments
from gammabeta.autograd import channel_norm
from gammabeta.functional import Finish, normalize_by_batch
from gammabeta.reference import channel_moments
from gammabeta.running_statistics import RunningStatistics


@dataclass(frozen=True)
class Renorm:
    """Batch renormalization: x̂ = (x − μ_B)/σ_B·r + d, the running statistics' (x − μ)/σ as far as r and d reach.

    r = σ_B/σ clipped to [1/r_max, r_max], d = (μ_B − μ)/σ clipped to [−d_max, d_max], both constants to the backward;
    σ_B = √(var + ε) of the batch, μ and σ = √(running_var + ε) the running ones before they move.

    Args:
        r_max: at least 1; 1 with d_max = 0 is `Batch`.
        d_max: at least 0, in standard deviations.

    Raises:
        ValueError: r_max under 1, d_max under 0, or (in forward) a layer without running statistics.

    Source: Ioffe 2017 (1702.03275), Algorithm 1.
    """

    r_max: float = 3.0
    d_max: float = 5.0

    def __post_init__(self) -> None:
        if self.r_max < 1 or self.d_max < 0:
            raise ValueError(f"Renorm: expected r_max ≥ 1 and d_max ≥ 0, got {self.r_max} and {self.d_max}.")

    def normalize(
        self,
        x: Tensor,
        running: RunningStatistics,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        finish: Finish,
    ) -> Tensor:
        if running.mean is None or running.var is None:
            if self == Renorm(1.0, 0.0):
                return normalize_by_batch(x, running, weight, bias, eps, finish)
            raise ValueError("Renorm: expected a layer with running statistics, got track_running_stats=False.")
        arguments.check_values_per_channel(x)
        arguments.check_eps("batch_norm", eps, positive=True)
        residual, mask, _, activation, slope = finish.of_channels(x, eps)
        with torch.no_grad():
            moments = channel_moments(x, mask)
            batch_std = torch.sqrt(moments.m2 / moments.count.clamp(min=1).to(moments.m2.dtype) + eps)
            std = torch.sqrt(running.var.to(batch_std.dtype) + eps)
            r = (batch_std / std).clamp(1 / self.r_max, self.r_max)
            d = ((moments.mean - running.mean.to(std.dtype)) / std).clamp(-self.d_max, self.d_max)
        # (x̂·r + d)·γ + β is a scale and shift of x̂ again, so the same op serves.
        gamma = r if weight is None else r * weight
        beta = d if weight is None else d * weight
        beta = beta if bias is None else beta + bias
        y, *_ = channel_norm(x, gamma, beta, residual, mask, eps, activation, slope)
        running.update(moments.mean, moments.var(), moments.count)
        return y
