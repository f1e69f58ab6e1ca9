"""The split of BatchNorm's gain: exact on made-up curves, and right for each verdict."""

import math

import pytest

from gammabeta.lab.claims import optimization_first
from gammabeta.lab.claims.optimization_first import error_at, parts, path
from gammabeta.lab.procedure import Chosen

START = (math.log(10), 90.0)


def test_a_path_leaves_out_runs_that_fit_no_better_than_shorter_ones():
    assert path(START, [(1.0, 30.0), (1.5, 5.0), (0.1, 10.0)]) == [START, (1.0, 30.0), (0.1, 10.0)]
    assert error_at([START, (1.0, 30.0), (0.01, 10.0)], 0.1) == pytest.approx(20.0)


def test_the_parts_add_up_and_are_those_of_the_curves():
    same = path(START, [(1.0, 30.0), (0.01, 10.0)])
    # On one curve, being further along is optimization.
    assert parts(same, same, ((1.0, 30.0), (0.01, 10.0))) == pytest.approx((20.0, 0.0))
    # A curve 5 points lower, at the same training loss, is generalization.
    lower = [(loss, error - 5) for loss, error in same]
    assert parts(same, lower, ((1.0, 30.0), (1.0, 25.0))) == pytest.approx((0.0, 5.0))
    assert parts(same, lower, ((1.0, 30.0), (0.01, 5.0))) == pytest.approx((20.0, 5.0))
    # Where BatchNorm fits worse, optimization costs: read on the other arm's curve.
    assert parts(same, lower, ((0.01, 10.0), (1.0, 25.0))) == pytest.approx((-20.0, 5.0))


def found(ends):
    """Make up what `choose_rates` returns: by norm, (training loss, error in percent) after 1, 4 and 12 epochs."""

    def choose(experiment, arms, replicates):
        results = {}
        for (index, norm, epochs), settings in arms.items():
            assert settings["momentum"] == 0.9
            loss, error = ends[norm][(1, 4, 12).index(epochs)]
            results[index, norm, epochs] = Chosen(
                [{"train_loss": loss, "error": error / 100 + 0.0001 * place} for place, _ in enumerate(replicates)],
                [-3] * len(replicates), -3, {-3: 0.1},
            )  # fmt: skip
        return results

    return choose


SLOW = [(2.0, 70.0), (1.0, 40.0), (0.5, 30.0)]
CASES = {
    # BatchNorm is further along the same curve.
    "supported": [(1.0, 40.0), (0.5, 30.0), (0.1, 15.0)],
    # It fits as well and errs less.
    "contradicted": [(2.0, 60.0), (1.0, 25.0), (0.5, 12.0)],
    # It does not gain.
    "no room here": SLOW,
    # First it is further along, then only lower.
    "mixed": [(1.2, 45.0), (0.6, 18.0), (0.55, 12.0)],
}


@pytest.mark.parametrize("verdict", CASES)
def test_made_up_curves_are_judged_right(experiment, monkeypatch, verdict):
    monkeypatch.setattr(optimization_first, "choose_rates", found({"none": SLOW, "batch": CASES[verdict]}))
    outcome = optimization_first.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert outcome.room.holds == (verdict != "no room here")
    for row in outcome.tables[0].rows:
        assert row[1] == pytest.approx(row[2] + row[3], abs=1e-6)


def test_a_run_that_diverged_counts_as_untrained(experiment, monkeypatch):
    lost = [(None, 100.0)] * 3
    monkeypatch.setattr(optimization_first, "choose_rates", found({"none": lost, "batch": CASES["supported"]}))
    outcome = optimization_first.measure(experiment)
    assert outcome.tables[0].rows[0][4] == pytest.approx(math.log(10))
    assert outcome.verdict == "supported"


def test_a_small_run_measures_both_parts(experiment, monkeypatch):
    monkeypatch.setattr(optimization_first, "networks", lambda experiment: [experiment.mlp(2, width=16)])
    monkeypatch.setattr(optimization_first, "IMAGES", 64)
    experiment.seed_count = 2
    outcome = optimization_first.measure(experiment)
    assert len(outcome.tables[0].rows) == 2
    assert all(math.isfinite(value) for row in outcome.tables[0].rows for value in row[1:])
    assert outcome.settings == "2 replicates, 64 training images"
