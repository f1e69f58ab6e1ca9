"""Looking again: what the looks spend together, and what they decide where there is nothing to decide."""

import numpy as np
import pytest

from gammabeta.lab.interval import interval
from gammabeta.lab.looks import ALPHA, LOOKS, MOST, confidence


def test_all_looks_together_spend_the_error_rate_of_one():
    spent = [1 - confidence(look) for look in LOOKS]
    assert sum(spent) == pytest.approx(ALPHA)
    assert all(part > 0.003 for part in spent)
    assert LOOKS[-1] == MOST


def test_who_looks_until_it_is_settled_decides_wrongly_in_at_most_7_of_100_cases():
    """With fixed 95 % intervals at every look it would be about 14."""
    rng = np.random.default_rng(0)
    studies = 1500
    honest = naive = 0
    for values in rng.normal(0, 1, (studies, MOST)):
        at = [(interval(list(values[:look]), confidence=confidence(look)), interval(list(values[:look])))
              for look in LOOKS]  # fmt: skip
        honest += any(one.low > 0 or one.high < 0 for one, _ in at)
        naive += any(other.low > 0 or other.high < 0 for _, other in at)
    assert honest / studies <= 0.07
    assert naive / studies > 0.10
