"""The rules of judging: false decisions are rare, and fewer seeds cannot improve a verdict."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gammabeta.lab.interval import Precision, interval
from gammabeta.lab.outcome import Criterion, tally
from gammabeta.lab.paired import log_ratios
from gammabeta.lab.verdict import decide, judge, over_regimes, seeds_needed, weakest

ALL = ("supported", "contradicted", "equivalent", "inconclusive", "no room here", "mixed")


@pytest.mark.parametrize("replicates", [2, 3, 4, 6, 10])
@pytest.mark.parametrize(("images", "error"), [(30, 0.1), (100, 0.03), (400, 0.01), (400, 0.03), (1000, 0.3)])
def test_equal_arms_are_told_apart_in_at_most_7_of_100_cases_however_few_the_images(replicates, images, error):
    """Errors in steps of 100/n, so that many differences are ties; the margin is 0."""
    rng, cases = np.random.default_rng(0), 4000
    rates = np.clip(error * np.exp(rng.normal(0, 0.3, (2, cases, replicates))), 0, 1)
    wrong = rng.binomial(images, rates)
    differences = (100 * (wrong[0] - wrong[1]) / images).tolist()
    around = [interval(values, Precision(samples=images)) for values in differences]
    decided = [decide(one.low, one.high, (0.0, 0.0), "above") in ("supported", "contradicted") for one in around]
    assert np.mean(decided) <= 0.07


def test_equal_values_on_few_images_support_nothing_that_one_image_could_overturn():
    assert judge([1.5, 1.5], (-1.0, 1.0), "above")[1] == "inconclusive"
    assert judge([1.5, 1.5], (-1.0, 1.0), "above", Precision(samples=100))[1] == "inconclusive"
    around, judged, needed = judge([1.5, 1.5], (-1.0, 1.0), "above", Precision(samples=400))
    assert (judged, needed) == ("inconclusive", 3)
    half = 12.706 * 0.25 / math.sqrt(24)
    assert (around.low, around.high) == pytest.approx((1.5 - half, 1.5 + half), rel=1e-4)
    assert judge([1.5] * 3, (-1.0, 1.0), "above", Precision(samples=400))[1] == "supported"


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


@given(st.floats(-10, 10), st.floats(0, 10), st.floats(0.01, 5))
@settings(deadline=None, max_examples=100)
def test_turning_the_claim_round_turns_the_verdict_round(low, width, margin):
    pairs = {"supported": "contradicted", "contradicted": "supported"}
    above = decide(low, low + width, (-margin, margin), "above")
    below = decide(low, low + width, (-margin, margin), "below")
    assert below == pairs.get(above, above)


@given(st.floats(-10, 10), st.floats(0, 10), st.floats(0.01, 5), st.floats(0, 1), st.sampled_from(["above", "within"]))
@settings(deadline=None, max_examples=200)
def test_a_narrower_interval_within_a_wider_one_never_takes_a_decision_back(low, width, margin, part, direction):
    """So that with the same mean and spread, more replicates only decide more."""
    wide = decide(low, low + width, (-margin, margin), direction)
    narrow = decide(low + part * width / 2, low + width - part * width / 2, (-margin, margin), direction)
    assert wide in ("inconclusive", narrow)


def test_seeds_needed_is_the_number_that_settles_it():
    values = [2.0, 1.0, 3.0, 0.0]  # mean 1.5, just above the margin of 1
    assert judge(values, (-1.0, 1.0), "above")[1] == "inconclusive"
    needed = seeds_needed(values, (-1.0, 1.0), "above")
    spread = np.std(values, ddof=1)
    assert needed == 29
    assert 1.5 - 2.048 * spread / math.sqrt(needed) > 1.0
    assert 1.5 - 2.052 * spread / math.sqrt(needed - 1) < 1.0
    assert seeds_needed(values, (-1.0, 1.0), "above", confidence=1 - 0.05 / 6) > needed


def test_no_number_of_seeds_settles_what_lies_on_the_margin_or_within_one_image_of_it():
    assert seeds_needed([0.0, 2.0], (-1.0, 1.0), "above") is None
    assert seeds_needed([1.4, 1.6], (-1.0, 1.0), "above", Precision(samples=400)) is not None
    assert seeds_needed([1.4, 1.6], (-1.0, 1.0), "above", Precision(samples=100)) is None


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
    assert weakest(["mixed", "supported"]) == "mixed"
    assert weakest(["mixed", "inconclusive"]) == "inconclusive"
    assert weakest(["mixed", "contradicted"]) == "contradicted"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["contradicted", "contradicted"], "contradicted"),
        (["equivalent", "equivalent"], "equivalent"),
        (["supported", "contradicted"], "mixed"),
        (["supported", "equivalent"], "mixed"),
        (["contradicted", "equivalent"], "mixed"),
        (["supported", "contradicted", "inconclusive"], "mixed"),
        (["supported", "inconclusive"], "inconclusive"),
        (["equivalent", "inconclusive"], "inconclusive"),
        (["inconclusive", "inconclusive"], "inconclusive"),
        (["supported", "no room here"], "supported"),
        (["no room here", "no room here"], "no room here"),
        ([], "no room here"),
    ],
)
def test_regimes_agree_or_the_verdict_is_mixed(verdicts, expected):
    for order in itertools.permutations(verdicts):
        assert over_regimes(list(order)) == expected


@given(st.lists(st.sampled_from(ALL), max_size=8))
@settings(deadline=None)
def test_no_number_of_agreeing_regimes_outvotes_one_that_is_shown_to_differ(verdicts):
    combined = over_regimes(verdicts)
    assert over_regimes([*verdicts, "no room here"]) == combined
    assert over_regimes(verdicts * 3) == combined
    if "contradicted" in verdicts:
        assert combined not in ("supported", "equivalent")
    if "inconclusive" in verdicts:
        assert combined in ("inconclusive", "mixed")


def test_regimes_are_counted_as_k_of_m_with_room():
    regimes = {"a": "supported", "b": "equivalent", "c": "supported", "d": "no room here"}
    assert tally(regimes) == "supported in 2 of 3 regimes, equivalent in 1"
    assert tally({"a": "contradicted"}) == "contradicted in 1 of 1 regime"
    assert tally({"a": "no room here"}) == tally({}) == ""
