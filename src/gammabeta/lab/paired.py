"""Values paired by replicate: differences and log ratios between two arms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gammabeta.lab.answers import precision_of
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.interval import Precision


def differences(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """Subtract the other arm's value from this arm's, seed by seed."""
    return [one - other for one, other in zip(ones, others, strict=True)]


def logs_of_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return log(numerator / denominator), seed by seed."""
    return [math.log(one / other) for one, other in zip(numerators, denominators, strict=True)]


@dataclass(frozen=True)
class Censored:
    """Paired log ratios of times to an event, and in how many pairs the limit ended a run before the event."""

    log_ratios: list[float]
    censored: int


def log_ratios(numerator: Sequence[float | None], denominator: Sequence[float | None], limit: float) -> Censored:
    """Compute log(numerator / denominator), pair by pair; a time that was not reached (None) counts as the limit.

    Such a time is a lower bound of the true one, so it pulls the ratio towards 1: it can hide an effect, but not create
    one. Where any pair is censored, "equivalent" is therefore not concluded (see `gammabeta.lab.verdict.judge`).
    """
    pairs = list(zip(numerator, denominator, strict=True))
    restricted = [(limit if a is None else a, limit if b is None else b) for a, b in pairs]
    return Censored(
        [math.log(a / b) for a, b in restricted],
        sum(a is None or b is None for a, b in pairs),
    )


def paired_errors(
    experiment: Experiment, ones: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], key: str = "error"
) -> tuple[list[float], Precision]:
    """Return one arm's errors on images minus another's, in percentage points by replicate, and their precision.

    Args:
        ones, others: results of the test split, one per replicate.
        key: ``"error"``, with exact statistics, or ``"moving_error"``, as deployed.
    """
    task, wrong = experiment.task, key.replace("error", "wrong")
    values = differences(*([100 * float(result[key]) for result in arm] for arm in (ones, others)))
    return values, precision_of(ones, others, samples=len(task.test), trained_on=len(task.train), wrong=(wrong, wrong))
