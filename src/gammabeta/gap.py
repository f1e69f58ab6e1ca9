"""How far the statistics that a norm is given are from its running ones, beside what sampling explains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gammabeta.measurement import Given

# Standard errors that a difference has to exceed, root mean square over channels, to be more than sampling.
SIGNIFICANT = 4.0
# From where on it matters: standard deviations of mean shift, and log of the variance ratio.
SHIFT, RATIO = 0.5, 0.693


@dataclass(frozen=True)
class Gap:
    """Root mean squares over the channels.

    Attributes:
        mean_shift: (mean given − running mean)/√running variance.
        log_variance_ratio: ln(variance given/running variance), both divided by n − 1.
        mean_error, variance_error: the standard errors of the two, 1/√n_eff and √(2/(n_eff − 1)).
    """

    mean_shift: float
    log_variance_ratio: float
    mean_error: float
    variance_error: float

    @property
    def significant(self) -> bool:
        """Whether sampling does not explain it."""
        return (
            self.mean_shift > SIGNIFICANT * self.mean_error
            or self.log_variance_ratio > SIGNIFICANT * self.variance_error
        )

    @property
    def matters(self) -> bool:
        """Whether it is significant and large."""
        return (self.mean_shift > max(SHIFT, SIGNIFICANT * self.mean_error)) or (
            self.log_variance_ratio > max(RATIO, SIGNIFICANT * self.variance_error)
        )

    def __str__(self) -> str:
        return (
            f"mean off by {self.mean_shift:.2f} standard deviations (sampling gives {self.mean_error:.2f}), log "
            f"variance by {self.log_variance_ratio:.2f} ({self.variance_error:.2f})"
        )


def gap_of(given: Given, running_mean: Tensor, running_var: Tensor) -> Gap | None:
    """The gap; None where the inputs do not tell sampling error, or a running variance is not positive.

    The variances' errors are a normal distribution's: Var(ln s²) ≈ 2/(n − 1).
    """
    mean, var = running_mean.double(), running_var.double()
    if given.effective is None or given.effective < 3 or not bool((var > 0).all() & torch.isfinite(mean).all()):
        return None
    of_inputs = given.moments.var(1)
    varies = of_inputs > 0
    if not bool(varies.any()):
        return None
    shift = ((given.moments.mean - mean) / var.sqrt())[varies]
    ratio = torch.log(of_inputs[varies] / var[varies])
    n = given.effective
    return Gap(_rms(shift), _rms(ratio), n**-0.5, (2 / (n - 1)) ** 0.5)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
