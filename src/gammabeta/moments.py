"""Statistics of a tensor as (count, mean, m2), and how two of them are merged.

Every statistic in gammabeta is a `Moments`: of a batch, a sub-batch, a rank or a whole data set. They are merged, never
averaged, so that the variance between the parts is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gammabeta.distributed.collectives import all_gather
from gammabeta.distributed.process_groups import Group, Peers, group_setting, peers_of
from gammabeta.masks import full_rank_mask

_LOW = 2**24  # integers below are exact in float32


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of statistics of values of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of sets of values, one set for each element of `mean`.

    Attributes:
        count: number of values n in each set, int64, of `mean`'s shape or broadcastable to it.
        mean: Σx / n, of any shape, float32 (float64 for float64 values), in the unit of the values; 0 where count is 0.
        m2: Σ(x − mean)², of `mean`'s shape and dtype, in the squared unit of the values; 0 where count is 0.

    Source: Chan, Golub & LeVeque 1983, "Algorithms for Computing the Sample Variance".
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, x: Tensor, axes: int | Sequence[int], mask: Tensor | None = None) -> Moments:
        """Compute the moments of `x` over `axes`.

        Two passes with the correction of the mean (Chan, Golub & LeVeque 1983, eq. 1.7). The first pass gives a mean
        that carries the rounding of a large sum. The second takes deviations from it, removes their mean and squares.

        Args:
            x: floating point, any shape and layout.
            axes: the reduced axes, as in `torch.mean`.
            mask: boolean, broadcastable to x; True where x counts. None counts all values.

        Returns:
            Moments whose `mean` and `m2` have x's shape without `axes`.

        Raises:
            TypeError: x is not floating point, or mask is not boolean.
            ValueError: mask does not broadcast to x.
        """
        if not x.is_floating_point():
            raise TypeError(
                f"Moments.of: expected x of a floating point dtype, got {x.dtype}: convert it with x.float()."
            )
        reduced = (axes,) if isinstance(axes, int) else tuple(axes)
        x = x.to(statistics_dtype(x.dtype))
        if mask is None:
            n = math.prod([x.shape[axis] for axis in reduced])
            count = torch.full((), n, dtype=torch.int64, device=x.device)
            shift = x.sum(reduced, keepdim=True) / max(n, 1)
            deviation = x - shift
            correction = deviation.sum(reduced, keepdim=True) / max(n, 1)
            m2 = (deviation - correction).square().sum(reduced)
            mean = (shift + correction).squeeze(reduced)
            return cls(count.expand(mean.shape), mean, m2)
        mask = full_rank_mask("Moments.of", mask, x)
        # Counted before the mask is expanded: an axis over which it is broadcast multiplies.
        repeats = math.prod([x.shape[axis] for axis in reduced if mask.shape[axis] == 1])
        count = mask.sum(reduced, keepdim=True) * repeats
        divisor = count.clamp(min=1).to(x.dtype)
        zero = x.new_zeros(())
        shift = torch.where(mask, x, zero).sum(reduced, keepdim=True) / divisor
        deviation = torch.where(mask, x - shift, zero)
        correction = deviation.sum(reduced, keepdim=True) / divisor
        m2 = torch.where(mask, deviation - correction, zero).square().sum(reduced)
        mean = (shift + correction).squeeze(reduced)
        return cls(count.squeeze(reduced).expand(mean.shape), mean, m2)

    def merge(self, other: Moments) -> Moments:
        """Compute the moments of both sets together; moments of count 0 are neutral.

        n = n₁ + n₂, δ = mean₂ − mean₁, mean = mean₁ + δ·n₂/n, m2 = m2₁ + m2₂ + δ²·n₁n₂/n.

        Args:
            other: moments of as many sets, in the same unit.

        Returns:
            Moments of the same shapes.

        Source: Chan, Golub & LeVeque 1983, eq. 2.1.
        """
        count = self.count + other.count
        delta = other.mean - self.mean
        share = other.count.to(delta.dtype) / count.clamp(min=1).to(delta.dtype)
        mean = self.mean + delta * share
        m2 = self.m2 + other.m2 + delta.square() * (self.count.to(delta.dtype) * share)
        return Moments(count, mean, m2)

    @staticmethod
    def merge_all(moments: Iterable[Moments]) -> Moments:
        """Merge all of them in pairs, always in one order, so that rounding grows with the logarithm of their number.

        Returns:
            Moments of the same shapes.

        Raises:
            ValueError: there are none.
        """
        level = list(moments)
        if not level:
            raise ValueError("Moments.merge_all: expected at least one Moments, got none.")
        while len(level) > 1:
            pairs = [first.merge(second) for first, second in zip(level[::2], level[1::2], strict=False)]
            level = pairs + level[len(pairs) * 2 :]
        return level[0]

    def all_reduce(self, group: Group = None) -> Moments:
        """Compute the moments of all processes' sets together, with the same bits on each process.

        One all-gather of count, mean and m2, then `merge` in pairs. Differentiable with respect to mean and m2.

        Args:
            group: None for the default group, a `torch.distributed.ProcessGroup`, ranks, or a group's name. Every
                process of the group has to call, with moments of the same shapes and dtype; a count of 0 is neutral.

        Returns:
            Moments of the same shapes; `self` where there is no other process.

        Raises:
            TypeError, ValueError: `group` is none of these.
            RuntimeError: this process has no such group.
        """
        owner = "Moments.all_reduce"
        peers = peers_of(owner, group_setting(owner, group))
        return self if peers is None else self.of_all(peers)

    def of_all(self, peers: Peers) -> Moments:
        """Do what `all_reduce` does, with peers that `peers_of` has found.

        Returns:
            Moments of the same shapes.
        """
        # One tensor of one dtype. The count travels in two halves, since float32 counts only to 2^24.
        count, mean, m2 = (t.reshape(-1) for t in (self.count, self.mean, self.m2))
        halves = torch.cat((count // _LOW, count % _LOW)).to(mean.dtype)
        rows = all_gather(torch.cat((halves, mean, m2)), peers)
        high, low, means, m2s = rows.split([count.numel(), count.numel(), mean.numel(), m2.numel()], 1)
        merged = _merge_rows(Moments(high.to(torch.int64) * _LOW + low.to(torch.int64), means, m2s))
        return Moments(merged.count.view_as(self.count), merged.mean.view_as(self.mean), merged.m2.view_as(self.m2))

    def var(self, correction: int = 0) -> Tensor:
        """Compute m2 / (count − correction); NaN where count ≤ correction, as in `torch.var`.

        A correction of 0 divides by n, one of 1 by n − 1.

        Returns:
            The variance, of `mean`'s shape, in the squared unit of the values.
        """
        divisor = (self.count - correction).to(self.m2.dtype)
        return torch.where(divisor > 0, self.m2 / divisor, torch.full_like(self.m2, math.nan))


def squared_distance(mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor) -> Tensor:
    """Compute how far other statistics are from these: (μ' − μ)²/σ² + ln²(σ'/σ), for each element.

    The root of its mean over channels is a distance in standard deviations σ of these statistics. Whoever wants ε in
    the variances adds it before.
    """
    return (mean - other_mean).square() / var + (0.5 * torch.log(other_var / var)).square()


def _merge_rows(rows: Moments) -> Moments:
    """Merge all rows into one: neighbours in pairs, all pairs at once, so that many rows take few operations."""
    count, mean, m2 = rows.count, rows.mean, rows.m2
    while len(mean) > 1:
        pairs = len(mean) // 2 * 2
        merged = Moments(count[:pairs:2], mean[:pairs:2], m2[:pairs:2]).merge(
            Moments(count[1:pairs:2], mean[1:pairs:2], m2[1:pairs:2])
        )
        if pairs == len(mean):
            count, mean, m2 = merged.count, merged.mean, merged.m2
        else:
            count = torch.cat((merged.count, count[-1:]))
            mean, m2 = torch.cat((merged.mean, mean[-1:])), torch.cat((merged.m2, m2[-1:]))
    return Moments(count[0], mean[0], m2[0])
