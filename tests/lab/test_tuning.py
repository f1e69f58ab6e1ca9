"""The best learning rate: found on a grid that widens, by the mean where several seeds tune."""

import pytest

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.tuning import at_best, tune


class Fake(Experiment):
    """An experiment whose trials are their settings and whose scores are known."""

    tuning_seed = 0

    def __init__(self, scores):
        self.scores = scores

    def train(self, **settings):
        return settings

    def run(self, trials):
        return [{"score": self.scores(trial["rate"], trial["seed"]), **trial} for trial in trials]


def score(result):
    return result["score"]


def lucky(rate, seed):
    """Score a rate: 1/4 is best; with seed 0, by luck, 1/16."""
    return abs(rate - 0.25) - (1.0 if seed == 0 and rate == 2.0**-4 else 0.0)


def test_an_optimum_at_the_edge_widens_the_grid():
    assert tune(Fake(lambda rate, seed: -rate), [{}], score) == [10]
    assert tune(Fake(lambda rate, seed: rate), [{}], score) == [-16]


def test_the_luck_of_one_seed_decides_alone_and_not_among_several():
    assert tune(Fake(lucky), [{}], score) == [-4]
    assert tune(Fake(lucky), [{}], score, tuning=[0, 1, 2, 3, 4, 5, 6, 7]) == [-2]


def test_results_are_taken_at_the_rate_that_was_tuned_on_several_seeds():
    rates, found = at_best(Fake(lucky), {"arm": {}}, score, [11, 12], tuning=range(8), report="test")
    assert rates == {"arm": -2}
    assert [(result["rate"], result["seed"], result["report"]) for result in found["arm"]] == [
        (0.25, 11, "test"),
        (0.25, 12, "test"),
    ]


def test_a_trial_of_ones_own_brings_its_seed():
    with pytest.raises(AssertionError):
        tune(Fake(lucky), [{}], score, make=lambda arm, exponent: {}, tuning=[1, 2])
