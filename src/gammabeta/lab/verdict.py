"""From one number per replicate to a verdict, and from the verdicts of several regimes to one.

The rules are fixed before anything runs: an effect, the claimed direction, and a margin below which nobody would care.
The verdict depends on the whole interval, so that fewer replicates can never make a claim truer.
"""

import bisect
import math
from collections.abc import Sequence
from typing import Literal

from gammabeta.lab.interval import CONTINUOUS, Interval, Precision, half_width, interval, spread_of

Verdict = Literal[
    "supported",
    "contradicted",
    "equivalent",
    "mixed",
    "inconclusive",
    "reported",
    "no room here",
    "does not apply",
    "failed",
    "interrupted",
]
Direction = Literal["above", "below", "within"]

DECIDED: tuple[Verdict, ...] = ("supported", "contradicted", "equivalent")
LARGEST_NUMBER_OF_SEEDS = 1000


def decide(low: float, high: float, margin: tuple[float, float], direction: Direction) -> Verdict:
    """Decide on an effect whose interval is [low, high].

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
    values: Sequence[float],
    margin: tuple[float, float],
    direction: Direction,
    precision: Precision = CONTINUOUS,
    confidence: float = 0.95,
) -> int | None:
    """Return how many seeds would decide, if mean and spread stayed the same.

    It is the smallest number of seeds whose interval decides; None where no number up to 1000 does, and where the
    values show no spread.
    """
    mean, spread = math.fsum(values) / len(values), spread_of(values, precision)
    if len(values) < 2 or spread == 0:
        return None

    def decides(n: int) -> bool:
        half = half_width(spread, n, precision, confidence)
        return decide(mean - half, mean + half, margin, direction) != "inconclusive"

    # Intervals around one mean shrink with n, so that what decides at n decides at every larger number.
    numbers = range(len(values) + 1, LARGEST_NUMBER_OF_SEEDS + 1)
    place = bisect.bisect_left(numbers, True, key=decides)
    return numbers[place] if place < len(numbers) else None


def judge(
    values: Sequence[float],
    margin: tuple[float, float],
    direction: Direction,
    precision: Precision = CONTINUOUS,
    *,
    censored: int = 0,
    confidence: float = 0.95,
) -> tuple[Interval, Verdict, int | None]:
    """Return interval, verdict, and the number of seeds that would decide (None unless inconclusive).

    Args:
        values: (R,), one per replicate.
        margin, direction: as :func:`decide` takes them.
        precision: how finely the values could be read.
        censored: how many of them are cut off at a limit. "equivalent" then becomes inconclusive: the true values may
            differ beyond the limit.
        confidence: of the interval; 1 − 0.05/k for one of k that are chosen from (Bonferroni).
    """
    around = interval(values, precision, confidence)
    verdict = decide(around.low, around.high, margin, direction)
    if verdict == "equivalent" and censored:
        return around, "inconclusive", None
    if verdict == "inconclusive":
        return around, verdict, seeds_needed(values, margin, direction, precision, confidence)
    return around, verdict, None


def weakest(verdicts: Sequence[Verdict]) -> Verdict:
    """Combine the verdicts of a claim that says several things: supported only if all are, contradicted if one is.

    It is mixed or equivalent only if none is inconclusive, because that one could still be contradicted.
    """
    order: tuple[Verdict, ...] = ("no room here", "contradicted", "inconclusive", "mixed", "equivalent")
    return next((verdict for verdict in order if verdict in verdicts), "supported")


def over_regimes(verdicts: Sequence[Verdict]) -> Verdict:
    """Combine the verdicts of one effect in several regimes; those without room do not count.

    Returns:
        The verdict of all, where they agree. mixed where one is supported or contradicted and another is shown to be
        otherwise: supported, contradicted or equivalent. Otherwise inconclusive; "no room here" where no regime has
        any.
    """
    counted = {verdict for verdict in verdicts if verdict != "no room here"}
    if not counted:
        return "no room here"
    if len(counted) == 1:
        return counted.pop()
    return "mixed" if "mixed" in counted or len(counted.intersection(DECIDED)) > 1 else "inconclusive"
