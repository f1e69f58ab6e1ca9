"""Properties of the fix, on some of the random models of `fix_properties.py`, which runs as long as one says."""

import warnings

import pytest
from tests.diagnostics.fix_properties import failures_of

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fix_harms_nothing(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        failures, case, _ = failures_of(seed)
    assert failures == [], ", ".join(case.traits.words)


def test_the_fix_does_mend():
    """A fix that left everything alone would keep every property."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mended = [failures_of(seed)[2] for seed in range(20)]
    assert sum(count > 0 for count in mended) >= 5
