"""The interval of a mean over replicates: Student's, and never narrower than test set and grid can show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from scipy import stats

# Values that differ by less than this part of the largest are equal: percentages of one test set differ by rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Interval:
    """A mean over replicates and its interval, which is infinite where the values show no spread."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How finely values could be read, and from how many samples.

    Attributes:
        step: of the grid that the values were read off, on their scale. A whole step is added on both sides.
        samples: n of the test set, where the values are error rates in percent or their differences. Half an interval
            is at least 100/n wide.
        variance: of d_i over the n samples of a test set that all replicates share. d_i is the difference of the
            errors on sample i, in percent, averaged over replicates. None where only the rates are known: the interval
            then speaks of this test set, not of the population that it was drawn from.
        trained_on: the number of training samples, where each replicate draws its own training and test samples from
            the same data. Such splits overlap, so that replicates are not independent.
        rates: whether the values are error rates; False for losses, which one sample moves by any amount.
    """

    step: float = 0.0
    samples: int | None = None
    variance: float | None = None
    trained_on: int | None = None
    rates: bool = True

    @property
    def least(self) -> float:
        """What one test sample more or less moves an error rate by, in percent; 0 for other values."""
        return 100 / self.samples if self.samples and self.rates else 0.0

    @property
    def grid(self) -> float:
        """The distance of neighbouring values; 0 where it is not known."""
        return max(self.step, self.least)

    def __post_init__(self) -> None:
        if self.samples is None and (self.variance is not None or self.trained_on is not None):
            raise ValueError("Precision: expected samples where variance or trained_on is given, got None.")
        if self.variance is not None and self.trained_on is not None:
            raise ValueError("Precision: expected a kept test set (variance) or redrawn splits (trained_on), got both.")


CONTINUOUS = Precision()


@lru_cache(maxsize=4096)
def student(replicates: int, confidence: float) -> float:
    """Return the quantile of Student's t that bounds a two-sided interval."""
    return float(stats.t.ppf(0.5 + confidence / 2, replicates - 1))


@lru_cache(maxsize=64)
def normal(confidence: float) -> float:
    """Return the quantile of the normal distribution that bounds a two-sided interval."""
    return float(stats.norm.ppf(0.5 + confidence / 2))


def half_width(spread: float, replicates: int, precision: Precision = CONTINUOUS, confidence: float = 0.95) -> float:
    """Compute half the width of the interval of a mean over R replicates.

    It is max(√(t²·s²·(1/R + ρ) + z²·v/n), 100/n) + step. s is the spread, t and z are the quantiles of Student's t with
    R − 1 degrees of freedom and of the normal distribution, v is ``precision.variance`` (0 where it is not known), n
    the number of test samples. ρ is n/n_train for redrawn splits, otherwise 0; 100/n is 0 where n is not known.

    Args:
        spread: the standard deviation over replicates, as :func:`spread_of` computes it.
        replicates: R, at least 2.

    Source: Nadeau & Bengio 2003, Inference for the Generalization Error, section 4, for ρ.
    """
    n = precision.samples
    overlap = n / precision.trained_on if n and precision.trained_on else 0.0
    over_replicates = student(replicates, confidence) ** 2 * spread**2 * (1 / replicates + overlap)
    over_samples = normal(confidence) ** 2 * (precision.variance or 0.0) / n if n else 0.0
    return max(math.sqrt(over_replicates + over_samples), precision.least) + precision.step


def spread_of(values: Sequence[float], precision: Precision = CONTINUOUS) -> float:
    """Compute the standard deviation over replicates, dividing by R − 1.

    Values that were read off a grid and agree may differ within its steps: their spread is at least that of a uniform
    distribution over one step, step/√12. It is 0 only where equal values (to rounding) come from no known grid.
    """
    finest = precision.grid / math.sqrt(12)
    if len(values) < 2 or max(values) - min(values) <= ROUNDING * max(map(abs, values)):
        return finest
    mean = math.fsum(values) / len(values)
    return max(finest, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)))


def interval(values: Sequence[float], precision: Precision = CONTINUOUS, confidence: float = 0.95) -> Interval:
    """Compute the mean of one value per replicate, and its interval.

    Equal values bound the mean only where ``precision`` says how finely they could be read (:func:`spread_of`):
    otherwise nothing tells how far replicates would differ, as with a single one.

    Args:
        values: (R,), one value per replicate: a difference, or the log of a ratio, between paired arms.
        precision: how finely they could be read.
        confidence: of the two-sided interval.

    Returns:
        Mean, low and high; low and high are infinite for one replicate, and for equal values of unknown precision.

    Raises:
        ValueError: no values, or values that are not finite (censor them first).
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"interval: expected at least one value, all finite, got {list(values)}")
    mean, spread = math.fsum(values) / len(values), spread_of(values, precision)
    if len(values) == 1 or spread == 0:
        return Interval(mean, -math.inf, math.inf)
    half = half_width(spread, len(values), precision, confidence)
    return Interval(mean, mean - half, mean + half)
