"""Intervals of a mean over replicates: they cover, and are no narrower than what was measured allows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gammabeta.lab.interval import CONTINUOUS, Precision, half_width, interval, spread_of

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)


def share_covered(draws, truth, precision=CONTINUOUS, confidence=0.95):
    """Return in which part of the rows of ``draws`` the interval holds the truth."""
    around = [interval(row, precision, confidence) for row in draws.tolist()]
    return np.mean([one.low <= truth <= one.high for one in around])


@pytest.mark.parametrize("replicates", [2, 3, 5, 10, 32])
@pytest.mark.parametrize("confidence", [0.95, 1 - 0.05 / 6])
def test_the_interval_covers_the_mean_of_normal_values_as_often_as_it_says(replicates, confidence):
    draws = np.random.default_rng(1).normal(2.0, 3.0, (20_000, replicates))
    # three standard errors of a share of 20,000
    allowed = 3 * math.sqrt(confidence * (1 - confidence) / 20_000)
    assert share_covered(draws, 2.0, confidence=confidence) == pytest.approx(confidence, abs=allowed)


def test_without_floors_it_is_students_interval():
    values = [1.0, 2.0, 4.0]
    around = interval(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (around.low, around.high) == pytest.approx((low, high))


def test_on_a_kept_test_set_it_covers_the_difference_in_the_population():
    """Two classifiers: which of the images each gets wrong differs by replicate, and how hard images are by image."""
    rng, replicates, images, studies = np.random.default_rng(2), 8, 100, 3000
    # A's and B's chance to get an image wrong, drawn anew for the test set of each study
    hard_sni = rng.uniform(0, 0.6, (2, studies, images))
    wrong_srni = rng.random((2, studies, replicates, images)) < hard_sni[:, :, None]
    differences_srn = 100.0 * (wrong_srni[0].astype(float) - wrong_srni[1])
    values = differences_srn.mean(axis=2)
    variances = differences_srn.mean(axis=1).var(axis=1, ddof=1)
    held = {"population": 0, "test set alone": 0}
    for row, variance in zip(values.tolist(), variances, strict=True):
        whole = interval(row, Precision(samples=images, variance=float(variance)))
        held["population"] += whole.low <= 0.0 <= whole.high
        alone = interval(row, Precision(samples=images))
        held["test set alone"] += alone.low <= 0.0 <= alone.high
    assert held["population"] / studies >= 0.94
    assert held["test set alone"] / studies < 0.85  # what the variance over images is for


def test_over_redrawn_splits_it_covers_where_replicates_as_if_independent_do_not():
    """Values of overlapping splits are correlated by n_test/(n_test + n_train), as Nadeau and Bengio assume."""
    rng, replicates, studies, test, train = np.random.default_rng(3), 10, 5000, 300, 900
    correlation = test / (test + train)
    shared = rng.normal(0, math.sqrt(correlation), (studies, 1))
    values = shared + rng.normal(0, math.sqrt(1 - correlation), (studies, replicates))
    corrected = share_covered(values, 0.0, Precision(samples=10**6, trained_on=3 * 10**6))
    assert corrected == pytest.approx(0.95, abs=0.012)
    assert share_covered(values, 0.0) < 0.75


def test_half_the_width_is_composed_as_its_formula_says():
    t = stats.t.ppf(0.975, 3)
    kept = half_width(2.0, 4, Precision(samples=400, variance=900.0))
    assert kept == pytest.approx(math.sqrt(t**2 * 4.0 / 4 + stats.norm.ppf(0.975) ** 2 * 900.0 / 400))
    redrawn = half_width(2.0, 4, Precision(samples=100, trained_on=400))
    assert redrawn == pytest.approx(t * 2.0 * math.sqrt(1 / 4 + 100 / 400))
    assert half_width(0.01, 4, Precision(samples=100, trained_on=400)) == 1.0
    assert half_width(0.01, 4, Precision(samples=100, step=0.5)) == 1.5


@pytest.mark.parametrize("values", [[1.5, 1.5], [0.0, 0.0, 0.0], [100 * 0.0375 - 100 * 0.0225, 100 * 0.015]])
def test_equal_values_decide_nothing_but_what_their_precision_allows(values):
    """Errors on few images come in steps, so that replicates often agree by chance."""
    unknown = interval(values)
    assert (unknown.low, unknown.high) == (-math.inf, math.inf)
    student = stats.t.ppf(0.975, len(values) - 1) / math.sqrt(12 * len(values))
    on_400 = interval(values, Precision(samples=400))
    half = 0.25 * max(student, 1)
    assert (on_400.low, on_400.high) == pytest.approx((values[0] - half, values[0] + half))
    on_grid = interval(values, Precision(step=0.5))
    half = 0.5 * (student + 1)
    assert (on_grid.low, on_grid.high) == pytest.approx((values[0] - half, values[0] + half))
    # the more one asks, the less two equal values can say
    assert interval(values, Precision(samples=400), 0.99).high > on_400.high


def test_one_replicate_has_no_bounds_whatever_the_precision():
    around = interval([5.0], Precision(samples=400, step=1.0))
    assert (around.value, around.low, around.high) == (5.0, -math.inf, math.inf)


@given(VALUES, st.integers(1, 10_000))
@settings(deadline=None, max_examples=50)
def test_half_an_interval_of_error_rates_is_never_less_than_one_sample(values, samples):
    around = interval(values, Precision(samples=samples))
    assert around.high - around.value >= 100 / samples * (1 - 1e-6)
    assert around.value - around.low >= 100 / samples * (1 - 1e-6)


@given(VALUES)
@settings(deadline=None, max_examples=50)
def test_the_interval_holds_the_mean_and_moves_with_the_values(values):
    around = interval(values, Precision(step=0.1))
    assert around.low <= around.value <= around.high
    moved = interval([value + 7.0 for value in values], Precision(step=0.1))
    if spread_of(values) > 1e-3:  # a shift may hide a spread in its rounding
        assert moved.low == pytest.approx(around.low + 7.0, abs=1e-6)
    turned = interval([-value for value in values], Precision(step=0.1))
    assert (turned.low, turned.high) == pytest.approx((-around.high, -around.low), abs=1e-9)


@given(st.floats(0, 100), st.integers(2, 60), st.integers(1, 5000), st.floats(0.8, 0.999))
@settings(deadline=None, max_examples=100)
def test_more_replicates_of_the_same_spread_never_widen_it(spread, replicates, samples, confidence):
    for precision in (Precision(samples=samples), Precision(samples=samples, trained_on=3 * samples)):
        wide = half_width(spread, replicates, precision, confidence)
        assert half_width(spread, replicates + 1, precision, confidence) <= wide
        assert half_width(spread, replicates, precision, (1 + confidence) / 2) >= wide


def test_no_values_or_not_finite_ones_are_refused():
    with pytest.raises(ValueError, match=r"^interval: expected at least one value, all finite, got \[\]$"):
        interval([])
    with pytest.raises(ValueError, match=r"^interval: expected at least one value, all finite, got \[nan, 1.0\]$"):
        interval([math.nan, 1.0])


def test_a_precision_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="expected samples where variance or trained_on is given, got None"):
        Precision(variance=1.0)
    with pytest.raises(ValueError, match=r"expected a kept test set \(variance\) or redrawn splits \(trained_on\)"):
        Precision(samples=10, variance=1.0, trained_on=30)


def test_losses_have_no_floor_of_one_sample_in_a_hundred():
    rates = Precision(samples=50, variance=0.0)
    losses = Precision(samples=50, variance=0.0, rates=False)
    assert half_width(1e-3, 4, rates) == 2.0
    assert half_width(1e-3, 4, losses) < 2e-3
    assert (rates.grid, losses.grid) == (2.0, 0.0)
    wider = Precision(samples=50, variance=0.5, rates=False)
    assert half_width(1e-3, 4, wider) == pytest.approx((half_width(1e-3, 4, losses) ** 2 + 1.96**2 * 0.01) ** 0.5, 1e-3)
