"""From one number per seed to an interval and a verdict.

The rules are fixed before anything runs: an effect, the claimed direction, and a margin below which nobody would care.
The verdict depends on the whole 95 % interval, so that fewer seeds can never make a claim truer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal[
    "supported",
    "contradicted",
    "equivalent",
    "inconclusive",
    "reported",
    "no room here",
    "does not apply",
    "failed",
    "interrupted",
]
Direction = Literal["above", "below", "within"]

RESAMPLES = 10_000
LARGEST_NUMBER_OF_SEEDS = 1000


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval, which is infinite where only one seed was run."""

    value: float
    low: float
    high: float


def interval(values: Sequence[float], *, resolution: float = 0.0) -> Interval:
    """Compute the mean of one value per seed and its 95 % interval, by bootstrap over seeds.

    The percentile bootstrap of n values is too narrow by a factor of about sqrt((n − 1)/n) · 1.96/t. For three seeds, a
    95 % interval then covers only 79 %. Its deviations from the mean are therefore expanded by
    t₀.₉₇₅,ₙ₋₁ · sqrt(n/(n − 1)) / 1.96: to the width of Student's interval, while the shape stays the bootstrap's.

    Args:
        values: (n,), one value per seed: a difference, or the log of a ratio, between paired arms.
        resolution: the step of the grid that the values were read off, added on both sides.

    Returns:
        Mean, low and high; low and high are infinite for n = 1.

    Raises:
        ValueError: no values, or values that are not finite (censor them first).

    Source: Hesterberg 2015, What Teachers Should Know About the Bootstrap, section 4.
    """
    x_n = np.asarray(values, dtype=np.float64)
    n = x_n.size
    if n == 0 or not np.isfinite(x_n).all():
        raise ValueError(f"interval: expected at least one value, all finite, got {list(values)}")
    mean = float(x_n.mean())
    if n == 1:
        return Interval(mean, -math.inf, math.inf)
    draws = np.random.default_rng(0).integers(0, n, size=(RESAMPLES, n))
    low, high = np.percentile(x_n[draws].mean(axis=1), [2.5, 97.5])
    wider = float(stats.t.ppf(0.975, n - 1)) * math.sqrt(n / (n - 1)) / float(stats.norm.ppf(0.975))
    return Interval(
        mean,
        mean + (float(low) - mean) * wider - resolution,
        mean + (float(high) - mean) * wider + resolution,
    )


def decide(low: float, high: float, margin: tuple[float, float], direction: Direction) -> Verdict:
    """Decide on an effect whose 95 % interval is [low, high].

    Args:
        low, high: the interval.
        margin: (lower, upper), between which nobody would care; for ``"within"`` the claimed range.
        direction: where the claim says that the effect lies: above the upper margin, below the lower one, or within.

    Returns:
        supported, contradicted, equivalent or inconclusive; ``"within"`` is never equivalent.
    """
    lower, upper = margin
    if direction == "within":
        if lower <= low and high <= upper:
            return "supported"
        return "contradicted" if high < lower or low > upper else "inconclusive"
    if low > upper:
        return "supported" if direction == "above" else "contradicted"
    if high < lower:
        return "supported" if direction == "below" else "contradicted"
    return "equivalent" if lower <= low and high <= upper else "inconclusive"


def seeds_needed(
    values: Sequence[float], margin: tuple[float, float], direction: Direction, *, resolution: float = 0.0
) -> int | None:
    """Return how many seeds would decide, if mean and spread stayed the same.

    It is the smallest number of seeds whose Student interval decides; None where no number up to 1000 does, and where
    there is only one value, which shows no spread.
    """
    x_n = np.asarray(values, dtype=np.float64)
    if x_n.size < 2:
        return None
    mean, spread = float(x_n.mean()), float(x_n.std(ddof=1))
    for n in range(x_n.size + 1, LARGEST_NUMBER_OF_SEEDS + 1):
        half = float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n) + resolution
        if decide(mean - half, mean + half, margin, direction) != "inconclusive":
            return n
    return None


@dataclass(frozen=True)
class Censored:
    """Paired log ratios of times to an event, and in how many pairs the limit ended a run before the event."""

    log_ratios: list[float]
    censored: int


def log_ratios(numerator: Sequence[float | None], denominator: Sequence[float | None], limit: float) -> Censored:
    """Compute log(numerator / denominator), pair by pair; a time that was not reached (None) counts as the limit.

    Such a time is a lower bound of the true one, so it pulls the ratio towards 1: it can hide an effect, but not create
    one. Where any pair is censored, "equivalent" is therefore not concluded (see :func:`judge`).
    """
    pairs = list(zip(numerator, denominator, strict=True))
    restricted = [(limit if a is None else a, limit if b is None else b) for a, b in pairs]
    return Censored(
        [math.log(a / b) for a, b in restricted],
        sum(a is None or b is None for a, b in pairs),
    )


def judge(
    values: Sequence[float],
    margin: tuple[float, float],
    direction: Direction,
    *,
    resolution: float = 0.0,
    censored: int = 0,
) -> tuple[Interval, Verdict, int | None]:
    """Return interval, verdict, and the number of seeds that would decide (None unless inconclusive).

    With ``censored`` values, "equivalent" becomes inconclusive: the true times may differ beyond the limit.
    """
    around = interval(values, resolution=resolution)
    verdict = decide(around.low, around.high, margin, direction)
    if verdict == "equivalent" and censored:
        return around, "inconclusive", None
    if verdict == "inconclusive":
        return around, verdict, seeds_needed(values, margin, direction, resolution=resolution)
    return around, verdict, None


def weakest(verdicts: Sequence[Verdict]) -> Verdict:
    """Combine the verdicts of a claim that says several things: supported only if all are, contradicted if one is.

    It is equivalent only if none is inconclusive, because that one could still be contradicted.
    """
    order: tuple[Verdict, ...] = ("no room here", "contradicted", "inconclusive", "equivalent")
    return next((verdict for verdict in order if verdict in verdicts), "supported")
