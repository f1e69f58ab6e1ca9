"""BatchNorm's place: each verdict on made-up errors, and a small run."""

import pytest

from gammabeta.lab.claims import bn_placement
from gammabeta.lab.procedure import Chosen


def found(errors):
    """Make up what `choose_rates` returns: an arm's error in percent."""

    def choose(experiment, arms, replicates):
        placements = [settings["network"]["placement"] for settings in arms.values()]
        assert placements == ["before", "before", "after", "input"]
        return {
            (index, arm): Chosen(
                [dict.fromkeys(("error", "moving_error"), errors[arm] / 100 + 1e-4 * place) for place in range(4)],
                [-3] * 4,
                -3,
                {-3: 0.1},
            )
            for index, arm in arms
        }

    return choose


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ((9.0, 5.0, 5.3, 4.8), "supported"),
        ((9.0, 5.0, 8.0, 2.0), "contradicted"),
        ((9.0, 5.0, 5.0, 8.0), "mixed"),
        ((9.0, 5.0, 6.0, 5.0), "inconclusive"),
        ((5.5, 5.0, 5.0, 5.0), "no room here"),
    ],
)
def test_made_up_errors_are_judged_right(experiment, monkeypatch, errors, verdict):
    monkeypatch.setattr(bn_placement, "choose_rates", found(dict(zip(bn_placement.ARMS, errors, strict=True))))
    outcome = bn_placement.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert list(outcome.regimes) == [
        "MLP 8 layers relu, after the activation",
        "MLP 8 layers relu, at the layer's input",
    ]
    assert [row[3] for row in outcome.tables[0].rows] == pytest.approx([error + 0.015 for error in errors])


def test_a_small_run_measures_every_place(experiment, monkeypatch):
    monkeypatch.setattr(bn_placement, "networks", lambda experiment: [experiment.mlp(2, width=8)])
    monkeypatch.setattr(bn_placement, "EPOCHS", 1)
    experiment.seed_count = 2
    outcome = bn_placement.measure(experiment)
    assert [row[1] for row in outcome.tables[0].rows] == list(bn_placement.ARMS)
