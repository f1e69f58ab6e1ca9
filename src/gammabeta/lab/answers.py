"""Which answers on a test set are wrong, as text in results, and how finely differences of errors can be read."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from gammabeta.lab.interval import Precision


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
    wrong: tuple[str, str] = ("wrong", "wrong"),
) -> Precision:
    """Return the precision of differences of errors between two arms, in percent.

    Args:
        ones, others: results, one per replicate, as `gammabeta.lab.images.training.train` returns them. Where they say
            which answers are wrong, all replicates share the test images, which speak for the population that they were
            drawn from; otherwise each replicate has drawn its own.
        samples: n, test images.
        trained_on: training images.
        wrong: each arm's key in the results: ``"wrong"`` or ``"moving_wrong"``.
    """
    if not ones or ones[0].get(wrong[0]) is None:
        return Precision(samples=samples, trained_on=trained_on)
    by_arm = [
        np.mean([unpacked(result[key], samples) for result in arm], axis=0)
        for arm, key in zip((ones, others), wrong, strict=True)
    ]
    return Precision(samples=samples, variance=float(np.var(100 * (by_arm[0] - by_arm[1]), ddof=1)))
