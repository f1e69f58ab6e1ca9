"""How many batches an iterable has, and how many are taken of one that may never end."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

# Of an iterable without a length. The standard error of a mean over 1000 batches of 32 is 0.006 standard deviations.
MOST = 1000
# No epoch has as many: a larger length is that of a loader that says it never ends.
_ENDLESS = 10**7


def length_of(batches: Iterable[Any]) -> int | None:
    """Return the number of batches; None where the iterable does not say, or says that it never ends.

    `isinstance(batches, Sized)` does not tell: a DataLoader of an IterableDataset has a `__len__`, which raises.
    """
    try:
        number = len(batches)  # type: ignore[arg-type]
    except Exception:  # whatever a loader of the user's raises where it has none
        return None
    return number if 0 < number < _ENDLESS else None


def bounded(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield as many batches as the iterable's length says, or the first `MOST` where it has none."""
    return itertools.islice(batches, length_of(batches) or MOST)
