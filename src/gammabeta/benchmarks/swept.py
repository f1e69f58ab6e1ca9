"""The rows of a sweep, and what was measured of each.

`contest.Result` has the percentiles of each contestant's times. A sweep asks whether a ratio is above a limit in every
one of several repetitions, and so keeps the quartiles of the ratio, repetition by repetition.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from gammabeta.benchmarks.contest import Row

REPETITIONS = 3
JUDGED, SMALL, INACCURATE = "judged", "small calls", "torch's op is not accurate enough"
GROUPS = (JUDGED, SMALL, INACCURATE)


@dataclass(frozen=True)
class Combination(Row):
    """A row of a sweep: a norm with what follows it, on one shape.

    Args:
        norm: its name.
        network: which has this norm on this shape.
        activation: its name, "none" for none.
        residual: whether a residual is added before it.
        backward: whether the backward is timed.
        group: one of `GROUPS`.
    """

    norm: str = ""
    network: str = ""
    activation: str = "none"
    residual: bool = False
    backward: bool = False
    group: str = JUDGED

    @property
    def limit(self) -> float:
        """Of ours / torch."""
        assert self.at_most_of_torch is not None
        return self.at_most_of_torch


@dataclass(frozen=True)
class Times:
    """One repetition of a row: quartiles of ours / torch over the rounds, and the median seconds of both."""

    low: float
    middle: float
    high: float
    ours: float
    torch: float
    rounds: int

    @classmethod
    def of(cls, ours: list[float], torch: list[float]) -> Times:
        """Return those of at least two rounds, each with the seconds of one timing of both contestants."""
        ratios = [mine / other for mine, other in zip(ours, torch, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(low, middle, high, statistics.median(ours), statistics.median(torch), len(ratios))


@dataclass(frozen=True)
class Swept:
    """A row's repetitions so far, or why it did not run."""

    row: Combination
    threads: int
    times: tuple[Times, ...] = ()
    refused: str = ""

    @property
    def open(self) -> bool:
        """Whether another repetition could still find the row above its limit."""
        return not self.refused and len(self.times) < REPETITIONS and self._always_above()

    @property
    def above(self) -> bool:
        """Whether the row is above its limit: in every one of the repetitions."""
        return len(self.times) >= REPETITIONS and self._always_above()

    @property
    def ratio(self) -> float:
        """The median of ours / torch; of several repetitions, that of the middle one."""
        return statistics.median(times.middle for times in self.times)

    def _always_above(self) -> bool:
        return all(times.low > self.row.limit for times in self.times)
