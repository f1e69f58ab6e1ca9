"""Values paired by replicate: differences and log ratios between two arms."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

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


# --- errors on a test set ---


def packed(wrong_n: Tensor) -> str:
    """Write which answers are wrong (n,) as text: bits, first image first, in base64."""
    return base64.b64encode(np.packbits(wrong_n.numpy()).tobytes()).decode()


def unpacked(text: str, samples: int) -> np.ndarray:
    """Read what :func:`packed` wrote: (n,) bool."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=samples).astype(bool)


def precision_of(
    ones: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    samples: int,
    trained_on: int,
    wrong: str = "wrong",
) -> Precision:
    """Return the precision of differences of errors between two arms, in percent.

    Args:
        ones, others: results, one per replicate, as `gammabeta.lab.images.training.train` returns them. Where they say
            which answers are wrong, all replicates share the test images, which speak for the population that they were
            drawn from; otherwise each replicate has drawn its own.
        samples: n, test images.
        trained_on: training images.
        wrong: the key in the results: ``"wrong"`` or ``"moving_wrong"``.
    """
    if not ones or ones[0].get(wrong) is None:
        return Precision(samples=samples, trained_on=trained_on)
    by_arm = [np.mean([unpacked(result[wrong], samples) for result in arm], axis=0) for arm in (ones, others)]
    return Precision(samples=samples, variance=float(np.var(100 * (by_arm[0] - by_arm[1]), ddof=1)))
