"""Sharpness: right on a quadratic, blind to scales that change no output, and each verdict on made-up minima."""

import math

import pytest
import torch
from tests.lab.claims.idle import put_idle
from torch import nn

from gammabeta.lab.claims import sharpness
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build
from gammabeta.lab.trials.trial import Trial


def test_every_filter_moves_by_its_own_norm():
    weights = [torch.randn(4, 3, 2, 2), torch.randn(5, 7)]
    for direction in sharpness.directions(weights, 1):
        for weight, move in zip(weights, direction, strict=True):
            assert torch.allclose(move.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_scales_that_change_no_output_do_not_change_the_sharpness(experiment, norm):
    model = build(experiment.task, experiment.mlp(2, width=16), norm, 1)
    x, y = experiment.task.train.x_nchw[:64], experiment.task.train.y_n[:64]
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    before = sharpness.sharpness(model, x, y, 0.1, 1)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    if norm == "batch":
        assert sharpness.rescale_first(model, x)
    else:
        assert not sharpness.rescale_first(model, x)
        with torch.no_grad():  # biases are 0 at the start: relu(5 a) = 5 relu(a)
            model.hidden[0].weight.mul_(5)
            model.hidden[3].weight.div_(5)
    assert sharpness.sharpness(model, x, y, 0.1, 1) == pytest.approx(before, rel=1e-3)  # float32


def test_a_larger_step_is_sharper_and_its_slope_cancels(experiment):
    class Plane(nn.Module):
        """Scores whose loss is linear in the weight to first order: a step and its opposite cancel."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x):
            return self.layer(x.flatten(1))

    model = Plane()
    x, y = experiment.task.train.x_nchw[:64], experiment.task.train.y_n[:64]
    small, large = (sharpness.sharpness(model, x, y, radius, 1) for radius in (0.1, 0.2))
    # without the linear term the rise is quadratic
    assert large / small == pytest.approx(4, rel=0.1)


def made_up(ratio, *, tau=1.0, train_loss=0.01, rescaled=1.0, fits=1.0):
    def runs(experiment, chosen, replicates):
        found = {}
        for norm in sharpness.ARMS:
            for rank, (factor, size) in enumerate((f, s) for f in sharpness.FACTORS for s in sharpness.SIZES):
                value = 0.1 * (ratio if norm == "batch" else 1.0) * (1 + 0.1 * rank)
                found[0, norm, factor, size] = [
                    {
                        "sharpness": {"0.1": value * (1 + 0.01 * place * (norm == "batch")), "0.2": 4 * value},
                        "rescaled": value * (1 + 0.01 * place) * rescaled if norm == "batch" else None,
                        "train_loss": train_loss * (fits if norm == "batch" else 1.0),
                        "test_loss": train_loss + 0.2 + 0.01 * tau * rank + 1e-4 * place * (rank == 5),
                        "error": 0.05,
                    }
                    for place, _ in enumerate(replicates)
                ]
        return sharpness.Minima({(0, norm): found[0, norm, 0, sharpness.SIZES[-1]] for norm in sharpness.ARMS}, found)

    return runs


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        (made_up(0.5), "supported"),
        (made_up(2.0), "contradicted"),
        (made_up(1.0), "equivalent"),
        (made_up(0.5, fits=0.5), "equivalent"),  # less sharp only as far as it fits better
        (made_up(0.5, train_loss=0.5), "no room here"),
        (made_up(0.5, rescaled=1.5), "no room here"),  # the measure depends on a scale that changes no output
    ],
)
def test_made_up_minima_are_judged_right(experiment, monkeypatch, runs, verdict):
    monkeypatch.setattr(sharpness, "_runs", runs)
    outcome = sharpness.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert outcome.room.holds == (verdict != "no room here")


@pytest.mark.parametrize("tau", [1.0, -1.0])
def test_tau_is_that_of_the_ranks(experiment, monkeypatch, tau):
    found = made_up(0.5, tau=tau)(experiment, None, range(2)).found
    assert sharpness._taus(0, found) == pytest.approx([tau, tau])
    lost = {cell: [{**run, "sharpness": None} for run in runs] for cell, runs in found.items()}
    assert sharpness._taus(0, lost) == [0.0, 0.0]


def test_a_norm_that_does_nothing_ends_in_no_less_sharp_a_minimum(experiment, monkeypatch):
    """In such a network no layer can be rescaled either, so that nothing is judged."""
    put_idle(monkeypatch)
    monkeypatch.setattr(sharpness, "networks", lambda experiment: [experiment.mlp(3, width=24)])
    for name, value in {"EPOCHS": 4, "REACHED": 10.0, "SIZES": (64,), "FACTORS": (0,)}.items():
        monkeypatch.setattr(sharpness, name, value)
    outcome = sharpness.measure(experiment)
    assert outcome.verdict == "no room here"
    assert outcome.room.control.endswith("changes sharpness by nothing: there is none")
    assert outcome.effects[1].verdict != "supported"


def test_every_replicate_is_measured_at_the_rate_that_it_chose(experiment, monkeypatch):
    """Planted: with BatchNorm replicate r has its least validation error at 2^-(3 + r mod 2), without at 2^-4."""

    def planted_trial(norm, rate, seed, size):
        best = -4 if norm == "none" else -3 - seed % 2
        error = 0.05 + 0.1 * abs(math.log2(rate) - best)
        given = {"error": error, "norm": norm, "rate": rate, "seed": seed, "size": size}
        return Trial(f"{__name__}:planted", given)

    monkeypatch.setattr(
        Experiment,
        "train",
        lambda self, *, norm, rate, seed, batch_size, **_: planted_trial(norm, rate, seed, batch_size),
    )
    whole = sharpness.Trial
    monkeypatch.setattr(
        sharpness,
        "Trial",
        lambda run, of: whole(*planted_trial(of["norm"], of["rate"], of["seed"], of["batch_size"]).__dict__.values()),
    )
    minima = sharpness._runs(experiment, [experiment.mlp(3)], experiment.seeds(4, 12))
    assert [result["rate"] for result in minima.chosen[0, "batch"]] == [2.0**-4, 2.0**-3, 2.0**-4, 2.0**-3]
    assert [result["rate"] for result in minima.chosen[0, "none"]] == [2.0**-4] * 4
    tried = {result["rate"] for (_, norm, _, _), of in minima.found.items() for result in of if norm == "none"}
    assert tried == {2.0**-5, 2.0**-4, 2.0**-3}


def planted(*, error, rate, **_):
    return {"error": error, "loss": 0.5, "rate": rate, "validation": {"error": error, "loss": 0.5}}


def test_a_trial_measures_the_minimum_of_a_trained_network(experiment, monkeypatch):
    monkeypatch.setattr(sharpness, "EPOCHS", 3)
    given = {"network": dict(experiment.mlp(2, width=16)), "norm": "batch", "rate": 0.1, "batch_size": 64, "seed": 1}
    result = sharpness.minimum(task=experiment.drawn(1), **given)
    assert 0 < result["sharpness"]["0.1"] < result["sharpness"]["0.2"]
    assert result["rescaled"] == pytest.approx(result["sharpness"]["0.1"], rel=0.01)
    assert sharpness.minimum(task=experiment.drawn(1), **{**given, "norm": "none", "rate": 1e6})["sharpness"] is None
