"""Which norm is chosen, on made-up results: by whole intervals that hold together, never by means."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.lab.made_up import BATCH, BETTER, LEVEL, NEAR, WORSE, compared

from gammabeta.lab.choice import choose
from gammabeta.lab.comparison import ERROR
from gammabeta.lab.interval import Precision


def chosen(values, **more):
    """Return what is chosen, why, what is avoided and what is open, by the norms' names."""
    choice = choose(compared(values, **more))
    return choice.arm.norm, choice.why, [arm.norm for arm in choice.avoid], [arm.norm for arm in choice.open]


def test_a_norm_that_is_shown_to_be_better_by_the_margin_is_chosen_and_the_usual_one_avoided():
    assert chosen({"batch": BATCH, "group": BETTER}) == ("group", "better", ["batch"], [])


def test_a_norm_whose_mean_alone_is_better_is_not_chosen_and_nothing_is_avoided_for_it():
    far = (0.0, 4.0, -1.0, 0.0)  # 2.3 below on average
    assert chosen({"batch": BATCH, "group": far}) == ("batch", "usual", [], ["group"])
    assert chosen({"batch": BATCH, "group": NEAR}) == ("batch", "usual", [], ["group"])


def test_a_norm_that_is_better_by_less_than_the_margin_is_not_chosen():
    assert chosen({"batch": BATCH, "group": (2.7, 2.9, 2.8, 2.81)}) == ("batch", "usual", [], [])


def test_a_norm_that_is_shown_to_be_better_comes_before_one_with_a_better_mean():
    values = {"batch": BATCH, "group": BETTER, "renorm": (0.0, 4.0, -1.0, -2.0)}
    assert chosen(values) == ("group", "better", ["batch"], ["renorm"])


def test_of_several_that_are_better_the_first_within_the_margin_of_the_lowest_is_chosen():
    level = {"batch": WORSE, "group": BETTER, "none": (0.7, 0.8, 0.6, 0.7)}
    assert chosen(level)[0] == "group"
    assert chosen({**level, "group": (1.8, 1.9, 1.7, 1.8)})[0] == "none"


def test_what_is_shown_to_be_worse_is_avoided_and_what_seems_worse_is_not():
    seems = (3.0, 9.0, 4.0, 8.0)
    assert chosen({"batch": BATCH, "group": WORSE, "none": seems}) == ("batch", "usual", ["group"], ["none"])


def test_an_equally_good_norm_is_chosen_where_it_saves_a_tenth_of_time_or_memory():
    values = {"batch": BATCH, "group": LEVEL}
    assert chosen(values) == ("batch", "usual", [], [])
    assert chosen(values, timings={"group": (0.008, 0.009)}) == ("group", "cheaper", [], [])
    assert chosen(values, saved={"group": 900}) == ("group", "cheaper", [], [])
    assert chosen(values, saved={"group": 901}, timings={"group": (0.0091, 0.0091)})[1] == "usual"


def test_time_is_saved_only_where_every_timing_shows_it():
    values = {"batch": BATCH, "group": LEVEL}
    assert chosen(values, timings={"group": (0.005, 0.0095)})[1] == "usual"


def test_what_saves_one_cost_and_adds_a_tenth_of_the_other_saves_nothing():
    values = {"batch": BATCH, "group": LEVEL}
    assert chosen(values, saved={"group": 800}, timings={"group": (0.012, 0.012)})[1] == "usual"
    assert chosen(values, saved={"group": 1100}, timings={"group": (0.008, 0.008)})[1] == "usual"
    assert chosen(values, saved={"group": 1050}, timings={"group": (0.008, 0.008)})[1] == "cheaper"


def test_a_cheap_norm_that_is_not_shown_to_be_as_good_is_not_chosen():
    assert chosen({"batch": BATCH, "group": NEAR}, timings={"group": (0.001, 0.001)})[:2] == ("batch", "usual")
    assert chosen({"batch": BATCH, "group": WORSE}, timings={"group": (0.001, 0.001)})[:2] == ("batch", "usual")


def test_of_several_cheap_norms_the_cheapest_is_chosen_and_a_better_one_comes_before_them():
    values = {"batch": BATCH, "group": LEVEL, "rms": LEVEL}
    assert chosen(values, saved={"group": 800, "rms": 700})[0] == "rms"
    assert chosen({**values, "none": BETTER}, saved={"group": 800})[:2] == ("none", "better")


def test_a_norm_with_fewer_than_half_as_many_learning_rates_is_not_recommended():
    values = {"batch": BATCH, "group": BETTER}
    assert chosen(values, headroom={"batch": 6, "group": 3})[:2] == ("group", "better")
    assert chosen(values, headroom={"batch": 7, "group": 3}) == ("batch", "usual", [], [])
    cheaper = {"batch": BATCH, "group": LEVEL}
    assert chosen(cheaper, saved={"group": 800}, headroom={"batch": 7, "group": 3})[1] == "usual"


def test_a_norm_that_fails_at_twice_its_learning_rate_is_not_recommended_and_the_next_one_is():
    values = {"batch": WORSE, "group": BETTER, "layer": BATCH}
    assert chosen(values)[:2] == ("group", "better")
    assert chosen(values, fragile=("group",))[:2] == ("layer", "better")
    # The usual norm is kept for want of a better one, whatever its own room.
    assert chosen({"batch": BATCH, "group": LEVEL}, fragile=("batch",))[:2] == ("batch", "usual")


def test_a_lone_norm_is_kept():
    assert chosen({"batch": BATCH}) == ("batch", "usual", [], [])


def test_intervals_are_those_of_bonferroni_over_the_arms():
    six = {"batch": BATCH, **{f"arm {index}": NEAR for index in range(6)}}
    differences = np.subtract(BATCH, NEAR)
    for values, arms in ((six, 6), (dict(list(six.items())[:2]), 1)):
        gain = compared(values).arms[1].gain
        half = stats.t.ppf(1 - 0.025 / arms, 3) * stats.sem(differences)
        assert gain.high - gain.value == pytest.approx(half)
        assert gain.confidence == pytest.approx(1 - 0.05 / arms)


@pytest.mark.parametrize(("seeds", "images"), [(2, 100), (4, 400), (10, 1000)])
def test_of_six_identical_arms_another_than_the_usual_is_recommended_in_at_most_7_of_100_cases(seeds, images):
    """Six independent draws of one norm, in errors of few images; also with no margin."""
    rng, cases = np.random.default_rng(0), 1000
    rates = np.clip(0.05 * np.exp(rng.normal(0, 0.4, (cases, 6, seeds))), 0, 1)
    errors = 100 * rng.binomial(images, rates) / images
    names = ("batch", "renorm", "group", "layer", "rms", "none")
    for margin in ((-1.0, 1.0), (0.0, 0.0)):
        scale = replace(ERROR, margin=margin)
        others = avoided = 0
        for study in errors.tolist():
            choice = choose(
                compared(dict(zip(names, study, strict=True)), scale=scale, precision=Precision(samples=images))
            )
            others += choice.arm.norm != "batch"
            avoided += bool(choice.avoid)
        assert others / cases <= 0.07
        assert avoided / cases <= 0.07


@given(st.lists(st.lists(st.floats(0, 100), min_size=4, max_size=4), min_size=2, max_size=6))
@settings(deadline=None, max_examples=100)
def test_nothing_is_chosen_or_avoided_whose_interval_touches_the_margin(values):
    comparison = compared({f"arm {index}": of_arm for index, of_arm in enumerate(values)})
    choice, usual = choose(comparison), comparison.usual
    if choice.why == "better":
        assert choice.arm.gain.low > 1.0
        assert usual in choice.avoid
    else:
        assert usual not in choice.avoid
        assert all(arm.gain.low <= 1.0 for arm in comparison.arms[1:])
    assert all(arm is usual or arm.gain.high < -1.0 for arm in choice.avoid)
    assert choice.arm not in choice.avoid
    assert all(arm.gain.verdict == "inconclusive" for arm in choice.open)
