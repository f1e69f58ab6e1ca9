"""How much faster a changed model is: the two run in turns, and the ratio of each pair counts."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

_PAIRS = 15
_LONGEST = 5.0  # seconds that timing takes at most, roughly
_LASTS = 2e-3  # seconds that a timing lasts at least: it repeats a shorter forward
_LEVEL = 0.95
# The fewest pairs of which the lowest and the highest ratio hold the median at that level: 1 − 2/2⁶.
_FEWEST = 6


@dataclass(frozen=True)
class Timing:
    """Seconds of a forward before and after, measured in pairs.

    Attributes:
        pairs: (before, after) of each pair.
    """

    pairs: Sequence[tuple[float, float]]

    @property
    def seconds(self) -> tuple[float, float]:
        """The median times before and after."""
        before, after = zip(*self.pairs, strict=True)
        return statistics.median(before), statistics.median(after)

    @property
    def speedup(self) -> float:
        """The median over pairs of the time before over that after."""
        return statistics.median(self._ratios())

    @property
    def spread(self) -> tuple[float, float]:
        """The interval of that median at 95 %, from the ordered ratios (sign test); all of them for 5 or fewer."""
        ratios, count = sorted(self._ratios()), len(self.pairs)
        # P(the median is below the interval) is that of k or fewer of n fair coins: how many ratios lie outside.
        below = itertools.accumulate(math.comb(count, k) / 2**count for k in range(count // 2))
        outside = max(0, sum(2 * chance <= 1 - _LEVEL for chance in below) - 1)
        return ratios[outside], ratios[-1 - outside]

    @property
    def differs(self) -> bool:
        """Whether the spread excludes 1, and there are enough pairs to say so."""
        low, high = self.spread
        return len(self.pairs) >= _FEWEST and not low <= 1.0 <= high

    def __str__(self) -> str:
        before, after = (1e3 * second for second in self.seconds)
        low, high = self.spread
        count = len(self.pairs)
        of = f"{low:.2f} to {high:.2f} in {count} pair{'s' * (count > 1)}"
        if self.differs:
            return f"a forward takes {after:.2f} ms instead of {before:.2f} ms: {self.speedup:.2f} times as fast ({of})"
        return f"a forward takes {after:.2f} ms, before {before:.2f} ms: no difference seen (ratios {of})"

    def _ratios(self) -> list[float]:
        return [before / after for before, after in self.pairs]


def time_pairs(before: Callable[[], object], after: Callable[[], object]) -> Timing:
    """Time two calls in turns, which of them is first by turns too."""
    calls = (before, after)
    repeats = max(1, math.ceil(_LASTS / min(_seconds(call, 1) for _ in range(2) for call in calls)))
    pairs = []
    began = time.perf_counter()
    for turn in range(_PAIRS):
        first = turn % 2
        taken = {which: _seconds(calls[which], repeats) for which in (first, 1 - first)}
        pairs.append((taken[0], taken[1]))
        if time.perf_counter() - began > _LONGEST:
            break
    return Timing(tuple(pairs))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the seconds of one call."""
    _wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait()
    return (time.perf_counter() - start) / repeats


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
