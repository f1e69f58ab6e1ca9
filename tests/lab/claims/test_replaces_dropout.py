"""Dropout's gain with and without BatchNorm, and the variance after Dropout: derived, simulated and measured."""

import math

import pytest
import torch
from tests.lab.claims.made_up_rates import chosen, plant
from tests.threads import one_thread

from gammabeta.lab.claims import replaces_dropout as claim
from gammabeta.lab.images.dropout_net import build_conv_net


@pytest.fixture(autouse=True)
def as_a_trial():
    with one_thread():
        yield


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_the_derived_ratio_is_that_of_simulated_units(dropout):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1_000_000, generator=generator, dtype=torch.float64).relu()
    keep = torch.empty_like(x).bernoulli_(1 - dropout, generator=generator) / (1 - dropout)
    simulated = float((x * keep).var() / x.var())
    derived = claim.derived_ratio(float(x.mean()), float(x.var()), dropout)
    # a relative standard error of about 0.3 % for a variance of a million values with this kurtosis
    assert simulated == pytest.approx(derived, rel=0.01)


def test_the_derived_ratio_of_relu_at_one_half():
    mean, variance = 1 / math.sqrt(2 * math.pi), 0.5 - 1 / (2 * math.pi)
    assert mean**2 / variance == pytest.approx(1 / (math.pi - 1))
    assert claim.derived_ratio(mean, variance, 0.5) == pytest.approx(2.467, abs=1e-3)
    assert claim.derived_ratio(mean, variance, 0.0) == pytest.approx(1.0)
    assert claim.derived_ratio(0.0, 1.0, 0.5) == pytest.approx(2.0)


PLAIN = {("none", 0.0): 20.0, ("batch", 0.0): 12.0}


@pytest.mark.parametrize(
    ("none", "batch", "ratio", "verdict"),
    [
        (14.0, 12.0, 1.4, "supported"),
        (14.0, 2.0, 1.4, "contradicted"),  # Dropout gains more with BatchNorm
        (14.0, 6.0, 1.4, "equivalent"),
        (14.0, 12.0, 1.0, "equivalent"),
        (14.0, 12.0, 0.5, "contradicted"),
        (14.0, 7.0, 1.4, "inconclusive"),
        (19.5, 12.0, 1.4, "no room here"),  # Dropout gains too little to be replaced
        (24.0, 12.0, 1.4, "no room here"),
    ],
)
def test_both_conditions_and_room(experiment, monkeypatch, none, batch, ratio, verdict):
    errors = {**PLAIN, ("none", 0.3): none, ("batch", 0.3): batch}
    wobbling = (math.log(ratio), math.log(ratio))
    plant(
        monkeypatch,
        claim,
        lambda arm: chosen(errors[arm], log_ratios=wobbling, train_loss=0.1, wobble=(0.0, 0.0, 0.0)),
    )
    monkeypatch.setattr(claim, "_ratios", lambda results: made_up_ratios(ratio))
    monkeypatch.setattr(claim, "_precision", lambda *_: claim.Precision(samples=1000))
    outcome = claim.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence


def made_up_ratios(ratio):
    logs = [math.log(ratio) + wobble for wobble in (-0.01, 0.0, 0.01)]
    return claim.SHIFT.effect("variance", logs), claim.DERIVED.effect("over the derived one", [-0.01, 0.0, 0.01])


def test_every_replicate_chooses_its_own_rate_of_dropout():
    low, high = chosen(8.0), chosen(9.0)
    high.results[1]["validation"]["error"] = 0.01
    gains = claim.gains_of("none", {("none", 0.0): chosen(10.0), ("none", 0.1): low, ("none", 0.5): high})
    assert gains.rates == [0.1, 0.5, 0.1]
    assert gains.points == [pytest.approx(2.0), pytest.approx(1.0), pytest.approx(2.0)]


def test_the_measured_ratio_is_the_derived_one_and_needs_dropout(experiment):
    settings = {"images": 100, "batch_size": 25, "steps": 20, "rate": 0.05, "seed": 1, "report": "test"}
    run = claim.dropped(task=experiment.drawn(1), norm="batch", dropout=0.5, **settings)
    measured, derived = run["log_ratios"]
    assert derived > math.log(1.2)
    assert measured == pytest.approx(derived, abs=0.1)
    without = claim.dropped(task=experiment.drawn(1), norm="batch", dropout=0.0, **settings)
    assert without["log_ratios"] is None
    assert without["train_loss"] < 2.0


def test_dropout_stands_before_both_linear_layers(experiment):
    names = [type(module).__name__ for module in build_conv_net(experiment.task, "batch", 0.3, 1).modules()]
    places = [index for index, name in enumerate(names) if name == "Dropout"]
    assert [names[place + 1] for place in places] == ["Linear", "Linear"]


def test_a_tiny_study_runs(experiment, monkeypatch):
    monkeypatch.setattr(claim, "QUICK", (40, 2))
    monkeypatch.setattr(claim, "COARSE", (-4,))
    experiment.seed_count = 2
    outcome = claim.measure(experiment)
    assert len(outcome.tables[0].rows) == 4
