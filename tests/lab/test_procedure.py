"""The whole procedure: the centre of the rates, what each replicate chooses, and the rule for the edges."""

import math

import pytest

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.procedure import choose_rates, headroom
from gammabeta.lab.tuning import Grid

REPLICATES = list(range(1, 10))


class Fake(Experiment):
    """An experiment whose trials are their settings; a replicate's best rate is known."""

    seed = 0

    def __init__(self, best):
        self.best, self.asked = best, []

    def train(self, **settings):
        return settings

    def run(self, trials):
        self.asked += trials
        return [self.result(trial) for trial in trials]

    def result(self, trial):
        distance = abs(math.log2(trial["rate"]) - self.best(trial["seed"]))
        found = {"score": distance, **trial}
        return {**found, "score": -1.0, "validation": found} if trial["report"] == "test" else found


def score(result):
    return result["score"]


def test_every_replicate_chooses_its_own_rate_by_its_own_validation_split():
    best = {1: -3, 2: -2, 3: -4}
    chosen = choose_rates(Fake(lambda r: best.get(r, -3)), {"arm": {}}, REPLICATES, score)["arm"]
    assert chosen.centre == -3
    assert chosen.exponents == [-3, -2, -4, -3, -3, -3, -3, -3, -3]
    assert [(result["seed"], result["rate"]) for result in chosen.results][:3] == [(1, 2**-3), (2, 2**-2), (3, 2**-4)]
    assert all(result["report"] == "test" for result in chosen.results)
    assert chosen.settled
    assert chosen.rate == 2**-3


def test_the_coarse_search_uses_replicates_of_its_own_and_no_test_split():
    fake = Fake(lambda r: -3)
    choose_rates(fake, {"arm": {}}, REPLICATES, score)
    searched = {(trial["seed"], trial["report"]) for trial in fake.asked if trial["seed"] not in REPLICATES}
    assert searched == {(number, "validation") for number in (997, 998, 999)}


def test_the_centre_moves_where_over_a_third_choose_one_edge():
    few, many = ((lambda r, n=n: -2 if r <= n else -3) for n in (3, 4))
    assert choose_rates(Fake(few), {"arm": {}}, REPLICATES, score)["arm"].centre == -3
    moved = choose_rates(Fake(many), {"arm": {}}, REPLICATES, score)["arm"]
    assert moved.centre == -2
    # Five of nine now choose the other edge, from which the centre came.
    assert moved.settled


def test_a_centre_far_from_what_replicates_need_moves_until_they_agree():
    far = choose_rates(Fake(lambda r: 0 if r in REPLICATES else -3), {"arm": {}}, REPLICATES, score)["arm"]
    assert (far.centre, set(far.exponents), far.settled) == (0, {0}, True)
    farther = choose_rates(Fake(lambda r: 6 if r in REPLICATES else -3), {"arm": {}}, REPLICATES, score)["arm"]
    assert (farther.centre, farther.settled) == (1, False)


@pytest.mark.parametrize(("margin", "count"), [(0.5, 1), (1.0, 3), (2.5, 5)])
def test_headroom_is_the_number_of_rates_as_good_as_the_best(margin, count):
    chosen = choose_rates(Fake(lambda r: -3), {"arm": {}}, [1, 2], score, Grid(widest=margin))["arm"]
    assert headroom(chosen.coarse, margin) == count
    assert set(range(-3 - count // 2 - 1, -3 + count // 2 + 2)) <= chosen.coarse.keys()
