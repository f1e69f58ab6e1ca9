"""Values paired by seed: differences and log ratios between two arms, and their median over cells."""

import math
from collections.abc import Iterable, Sequence
from statistics import median


def differences(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """Subtract the other arm's value from this arm's, seed by seed."""
    return [one - other for one, other in zip(ones, others, strict=True)]


def logs_of_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return log(numerator / denominator), seed by seed."""
    return [math.log(one / other) for one, other in zip(numerators, denominators, strict=True)]


def median_by_seed(cells: Iterable[Sequence[float]]) -> list[float]:
    """Return the median over cells for each seed; every cell has one value per seed, in the same order."""
    return [median(of_seed) for of_seed in zip(*cells, strict=True)]
