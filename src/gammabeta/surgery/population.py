"""The moments of all inputs of a layer, and their standard errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gammabeta.moments import Moments, squared_distance
from gammabeta.surgery.ranks import Ranks


@dataclass(frozen=True)
class Estimate:
    """The statistics of a population, by channel, and their standard errors.

    Attributes:
        samples: the number of samples, on all ranks.
        moments: (C,), float64.
        mean_error, var_error: standard errors of the mean and of the variance, (C,).
        eps: the layer's ε.
    """

    samples: int
    moments: Moments
    mean_error: Tensor
    var_error: Tensor
    eps: float

    def relative_errors(self) -> tuple[float, float]:
        """Return the standard errors of the mean, in standard deviations, and of the variance, relative to it.

        Both are root mean squares over the channels.
        """
        known = self.moments.count > 1
        var = self.moments.var()[known] + self.eps
        return _rms(self.mean_error[known] / var.sqrt()), _rms(self.var_error[known] / var)

    def distance(self, mean: Tensor, var: Tensor) -> float:
        """Return √(Δμ²/σ² + ln²(σ'/σ)) to other statistics, root mean square over channels.

        ε is added to both variances.
        """
        known = self.moments.count > 1
        # The layers of a model may be on several devices; the estimates are on one.
        mean, var = mean.to(self.moments.mean), var.to(self.moments.mean)
        own, other = self.moments.var()[known] + self.eps, var[known] + self.eps
        return float(squared_distance(self.moments.mean[known], own, mean[known], other).mean().sqrt())


class Population:
    """The moments of one layer's inputs over many forwards, by channel, in float64.

    Standard errors assume that samples are independent, and nothing about the positions of a sample. They come from the
    spread of the samples' own moments about those of all: the linearized variance of a ratio, with samples weighted by
    their count.

    Source: Chan, Golub & LeVeque 1983, eq. 2.1; Cochran 1977, "Sampling Techniques", chapter 6.
    """

    def __init__(self, eps: float) -> None:
        self.samples = 0
        self._eps = eps
        self._moments: Moments | None = None
        self._shift: Tensor | None = None
        self._sums: Tensor | None = None

    def add(self, x: Tensor, mask: Tensor | None) -> None:
        """Add a forward's input (N, C, *positions), with the mask that the layer was given."""
        x_NCS = x.detach().flatten(2) if x.ndim > 2 else x.detach().unsqueeze(-1)
        if mask is not None:
            mask = mask.broadcast_to(x.shape[:1] + x.shape[2:]).reshape(x.shape[0], 1, -1)
        each = Moments.of(x_NCS, 2, mask)
        n, mean, m2 = each.count.double(), each.mean.double(), each.m2.double()
        # A channel with a value that is not finite has spoiled the layer's output for the whole batch.
        finite = ((mean - mean) + (m2 - m2) == 0).all(0)
        n, mean, m2 = (torch.where(finite, values, 0.0) for values in (n, mean, m2))
        total = n.sum(0)
        batch_mean = (n * mean).sum(0) / total.clamp(min=1)
        batch_m2 = m2.sum(0) + (n * (mean - batch_mean).square()).sum(0)
        batch = Moments(total.long(), batch_mean, batch_m2)
        if self._moments is None or self._shift is None or self._sums is None:
            self._shift = batch_mean
            self._sums = torch.zeros(6, *batch_mean.shape, dtype=torch.float64, device=x.device)
            self._moments = batch
        else:
            self._moments = self._moments.merge(batch)
        self.samples += x.shape[0]
        # The samples' deviations from the final moments, not known yet, are polynomials in these sums.
        a = mean - self._shift
        b = m2 / n.clamp(min=1) + a.square()
        self._sums += (n.square() * torch.stack((torch.ones_like(a), a, b, a * a, a * b, b * b))).sum(1)

    def vector(self, channels: int, device: torch.device) -> Tensor:
        """Return what other ranks need of it, as one vector."""
        if self._moments is None:
            return torch.zeros(1 + 3 * channels, dtype=torch.float64, device=device)
        m = self._moments
        samples = torch.tensor([self.samples], dtype=torch.float64, device=device)
        return torch.cat([samples, m.count.double().to(device), m.mean.to(device), m.m2.to(device)])

    def squares(self, moments: Moments) -> Tensor:
        """Return Σ n²·(deviation)² over this rank's samples, (2, C), about `moments`.

        The first row is for the samples' means, the second for their second moments.
        """
        if self._shift is None or self._sums is None:
            return torch.zeros(2, *moments.mean.shape, dtype=torch.float64, device=moments.mean.device)
        w, wa, wb, waa, wab, wbb = self._sums.to(moments.mean.device)
        d = moments.mean - self._shift.to(moments.mean.device)
        c = d.square() - moments.var()
        of_mean = waa - 2 * d * wa + d.square() * w
        of_var = wbb + 4 * d.square() * waa + c.square() * w - 4 * d * wab + 2 * c * wb - 4 * d * c * wa
        return torch.stack((of_mean, of_var)).clamp(min=0)

    @property
    def eps(self) -> float:
        return self._eps


def estimates(populations: Mapping[str, Population], channels: Mapping[str, int], ranks: Ranks) -> dict[str, Estimate]:
    """Return every layer's estimate from all ranks' samples, with the same bits on every rank."""
    device = ranks.device
    vectors = [population.vector(channels[name], device) for name, population in populations.items()]
    sizes = [v.numel() for v in vectors]
    parts = [torch.split(whole, sizes) for whole in ranks.gather(torch.cat(vectors))]
    merged: dict[str, tuple[int, Moments]] = {}
    for index, name in enumerate(populations):
        c = channels[name]
        each = [part[index] for part in parts]
        moments = Moments.merge_all(Moments(v[1 : c + 1].long(), v[c + 1 : 2 * c + 1], v[2 * c + 1 :]) for v in each)
        merged[name] = int(sum(v[0].item() for v in each)), moments
    squares = [population.squares(merged[name][1]) for name, population in populations.items()]
    total = torch.stack(ranks.gather(torch.cat(squares, 1))).sum(0)
    out = {}
    for (name, (samples, moments)), own in zip(
        merged.items(), total.split([channels[n] for n in merged], 1), strict=True
    ):
        correction = samples / (samples - 1) if samples > 1 else torch.nan
        mean_error, var_error = torch.sqrt(own * correction) / moments.count.clamp(min=1)
        out[name] = Estimate(samples, moments, mean_error, var_error, populations[name].eps)
    return out


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item() if values.numel() else 0.0
