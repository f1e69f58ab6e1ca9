"""Robustness to hyperparameters: the design of the grid, each verdict on made-up errors, and a small run."""

import itertools

import pytest

from gammabeta.lab.claims import hyperparameters
from gammabeta.lab.claims.hyperparameters import L9
from gammabeta.lab.procedure import Chosen


def test_every_two_values_of_two_hyperparameters_meet_once():
    assert len(L9) == 9
    for one, other in itertools.combinations(range(4), 2):
        assert {(row[one], row[other]) for row in L9} == set(itertools.product(range(3), repeat=2))
    assert hyperparameters.settings_of((2, 0, 1, 2), 0.5) == {
        "rate": 1.0,
        "momentum": 0.8,
        "decay": 5e-4,
        "warm_up": 0.2,
    }


def made_up(spread):
    """Make up the runs: the best setting has 5 %, and the eight others are worse by the arm's spread."""

    def runs(experiment, arms, centres, replicates):
        return {
            (index, norm): [
                [
                    {"error": (5 + (row > 0) * 9 / 8 * spread[norm] + 0.05 * place) / 100, "loss": 0.1}
                    for place, _ in enumerate(replicates)
                ]
                for row in range(9)
            ]
            for index, norm in arms
        }

    return runs


@pytest.mark.parametrize(
    ("none", "batch", "verdict"),
    [
        (9.0, 2.0, "supported"),
        (2.0, 9.0, "contradicted"),
        (3.0, 3.0, "equivalent"),
        (3.0, 2.0, "inconclusive"),
        (0.5, 9.0, "no room here"),
    ],
)
def test_made_up_spreads_are_judged_right(experiment, monkeypatch, none, batch, verdict):
    monkeypatch.setattr(hyperparameters, "_runs", made_up({"none": none, "batch": batch}))
    chosen = Chosen([], [-3, -3, -2, -3, -4], -3, {})
    monkeypatch.setattr(
        hyperparameters, "choose_rates", lambda experiment, arms, replicates: dict.fromkeys(arms, chosen)
    )
    outcome = hyperparameters.measure(experiment)
    assert outcome.verdict == verdict
    assert outcome.effects[0].value == pytest.approx(none - batch)
    assert len(outcome.tables[0].rows) == 18


def test_a_run_that_diverged_has_the_error_of_chance():
    by_setting = [[{"error": 0.1, "loss": 0.3}], [{"error": 1.0, "loss": None}]]
    assert hyperparameters._spreads(by_setting, 90.0) == [40.0]


def test_a_small_run_takes_every_setting(experiment, monkeypatch):
    monkeypatch.setattr(hyperparameters, "networks", lambda experiment: [experiment.mlp(2, width=8)])
    monkeypatch.setattr(hyperparameters, "EPOCHS", 1)
    experiment.seed_count = 2
    outcome = hyperparameters.measure(experiment)
    assert len({tuple(row[2:6]) for row in outcome.tables[0].rows}) >= 9
    assert outcome.settings == "2 replicates, 9 of 81 settings, 1 epochs"


def test_the_grid_of_a_replicate_lies_around_its_own_choice(experiment):
    arms = {(0, "none"): {"network": experiment.mlp(1, width=4), "norm": "none", "batch_size": 32, "steps": 1}}
    asked = []
    experiment.grid = lambda cells, seeds, trial: {
        cell: [asked.append(trial(cell, s)) for s in seeds] for cell in cells
    }
    hyperparameters._runs(experiment, arms, {(0, "none"): [-3, -1]}, [7, 8])
    rates = {(trial.settings["seed"], trial.settings["rate"]) for trial in asked}
    assert rates == {(7, 2.0**e) for e in (-4, -3, -2)} | {(8, 2.0**e) for e in (-2, -1, 0)}
