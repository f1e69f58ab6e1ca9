"""The rules of judging: intervals cover, and fewer seeds cannot improve a verdict."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gammabeta.lab import verdict
from gammabeta.lab.outcome import Criterion
from gammabeta.lab.verdict import decide, interval, judge, log_ratios, seeds_needed, weakest

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_the_mean_of_normal_data_in_95_of_100_cases(n, monkeypatch):
    # Fewer resamples, for speed: percentiles of 1,000 are slightly noisier, but not shifted.
    monkeypatch.setattr(verdict, "RESAMPLES", 1000)
    rng = np.random.default_rng(1)
    runs = 1500
    around = [interval(rng.normal(2.0, 3.0, n).tolist()) for _ in range(runs)]
    covered = np.mean([one.low <= 2.0 <= one.high for one in around])
    assert covered >= 0.94
    # not by being absurdly wide: Student's interval is the reference
    width = np.mean([one.high - one.low for one in around])
    student = 2 * {3: 4.303, 5: 2.776, 10: 2.262}[n] * 3.0 / math.sqrt(n)
    assert width < 1.15 * student


def test_one_seed_decides_nothing():
    around, judged, needed = judge([5.0], (-1.0, 1.0), "above")
    assert (around.value, around.low, around.high) == (5.0, -math.inf, math.inf)
    assert judged == "inconclusive"
    assert needed is None


def test_one_seed_of_a_ratio_has_no_bounds_in_json():
    effect = Criterion(unit="", margin=(0.8, 1.25), direction="above", null=1.0, ratio=True).effect(
        "ratio", [math.log(3.0)]
    )
    assert effect.value == pytest.approx(3.0)
    assert (effect.low, effect.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("low", "high", "direction", "expected"),
    [
        (1.1, 2.0, "above", "supported"),
        (1.0, 2.0, "above", "inconclusive"),  # touches the margin
        (-3.0, -1.1, "above", "contradicted"),
        (-1.0, 1.0, "above", "equivalent"),
        (-1.1, 1.0, "above", "inconclusive"),
        (-3.0, -1.1, "below", "supported"),
        (1.1, 2.0, "below", "contradicted"),
        (-0.5, 0.5, "within", "supported"),
        (1.1, 2.0, "within", "contradicted"),
        (-3.0, -1.1, "within", "contradicted"),
        (0.5, 1.5, "within", "inconclusive"),
    ],
)
def test_verdicts(low, high, direction, expected):
    assert decide(low, high, (-1.0, 1.0), direction) == expected


@given(VALUES)
@settings(deadline=None, max_examples=50)
def test_the_interval_holds_the_mean_and_moves_with_the_values(values):
    around = interval(values)
    assert around.low <= around.value <= around.high
    moved = interval([value + 7.0 for value in values])
    assert moved.low == pytest.approx(around.low + 7.0, abs=1e-6)
    turned = interval([-value for value in values])
    assert turned.value == pytest.approx(-around.value, abs=1e-9)


@given(VALUES, st.floats(0.0, 10.0))
@settings(deadline=None, max_examples=30)
def test_the_resolution_of_a_grid_widens_both_sides(values, resolution):
    plain, wide = interval(values), interval(values, resolution=resolution)
    assert wide.low == pytest.approx(plain.low - resolution)
    assert wide.high == pytest.approx(plain.high + resolution)


@given(st.floats(-10, 10), st.floats(0, 10), st.floats(0.01, 5))
@settings(deadline=None, max_examples=100)
def test_turning_the_claim_round_turns_the_verdict_round(low, width, margin):
    pairs = {"supported": "contradicted", "contradicted": "supported"}
    above = decide(low, low + width, (-margin, margin), "above")
    below = decide(low, low + width, (-margin, margin), "below")
    assert below == pairs.get(above, above)


def test_no_values_or_not_finite_ones_are_refused():
    with pytest.raises(ValueError, match=r"^interval: expected at least one value, all finite, got \[\]$"):
        interval([])
    with pytest.raises(ValueError, match=r"^interval: expected at least one value, all finite, got \[nan, 1.0\]$"):
        interval([math.nan, 1.0])


def test_seeds_needed_is_the_number_that_settles_it():
    values = [2.0, 1.0, 3.0, 0.0]  # mean 1.5, just above the margin of 1
    assert judge(values, (-1.0, 1.0), "above")[1] == "inconclusive"
    needed = seeds_needed(values, (-1.0, 1.0), "above")
    spread = np.std(values, ddof=1)
    assert needed == 29
    assert 1.5 - 2.048 * spread / math.sqrt(needed) > 1.0
    assert 1.5 - 2.052 * spread / math.sqrt(needed - 1) < 1.0


def test_no_number_of_seeds_settles_what_lies_on_the_margin():
    assert seeds_needed([0.0, 2.0], (-1.0, 1.0), "above") is None


def test_what_is_not_reached_counts_with_the_limit_and_is_not_dropped():
    found = log_ratios([None, 60.0, None], [20.0, 20.0, None], limit=100.0)
    assert found.log_ratios == [math.log(5.0), math.log(3.0), 0.0]
    assert found.censored == 2


def test_censored_values_are_never_called_equivalent():
    values = [0.0, 0.001, -0.001]
    assert judge(values, (-1.0, 1.0), "above")[1] == "equivalent"
    assert judge(values, (-1.0, 1.0), "above", censored=1)[1] == "inconclusive"


def test_a_claim_that_says_two_things_is_as_good_as_its_weaker_part():
    assert weakest(["supported", "supported"]) == "supported"
    assert weakest(["supported", "inconclusive"]) == "inconclusive"
    assert weakest(["equivalent", "supported"]) == "equivalent"
    assert weakest(["equivalent", "contradicted"]) == "contradicted"
    assert weakest(["equivalent", "inconclusive", "supported"]) == "inconclusive"
