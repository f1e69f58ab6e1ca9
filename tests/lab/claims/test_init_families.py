"""Families of initialization: each draws what it says; the spread over them; the claim's branches."""

import math

import pytest
import torch
from tests.lab.claims.made_up_rates import chosen, plant
from tests.threads import one_thread

from gammabeta.lab.claims import init_families as claim
from gammabeta.lab.images.init_together import FAMILIES, initialize_by
from gammabeta.lab.images.networks import build


@pytest.fixture(autouse=True)
def as_a_trial():
    with one_thread():
        yield


@pytest.mark.parametrize(
    ("family", "std"),
    [
        ("He", math.sqrt(2 / 64)),
        ("Xavier", math.sqrt(2 / (64 + 200))),
        ("torch's default", 1 / math.sqrt(3 * 64)),
        ("orthogonal", 1 / math.sqrt(200)),  # orthonormal columns: 64 of length 200
        ("N(0, 0.01)", 0.01),
        ("uniform ±0.3", 0.3 / math.sqrt(3)),
    ],
)
def test_a_family_draws_what_it_says(experiment, family, std):
    network = experiment.mlp(1, width=200)
    model, again = build(experiment.task, network, "none", 1), build(experiment.task, network, "batch", 1)
    head = model.classifier.weight.clone()
    initialize_by(model, family, 5)
    initialize_by(again, family, 5)
    weight = model.hidden[0].weight.detach()  # (200, 64): its standard deviation is known to 1/√(2·12800) = 0.6 %
    assert float(weight.std()) == pytest.approx(std, rel=0.03)
    assert torch.equal(weight, again.hidden[0].weight)
    assert torch.equal(model.classifier.weight, head)
    assert not model.hidden[0].bias.any()
    if family == "orthogonal":
        torch.testing.assert_close(weight.T @ weight, torch.eye(64), atol=1e-5, rtol=0)


def test_convolutions_count_their_positions(experiment):
    model = build(experiment.task, experiment.convolutional, "batch", 1)
    initialize_by(model, "He", 1)
    weight = model.blocks[1].conv2.weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (24 * 9)), rel=0.05)


def planted(monkeypatch, experiment, without, within):
    """Plant the largest error over families by norm and way; the smallest is 5 %, that of the reference."""
    worst = {"none": without, "batch": within}

    def error_of(arm):
        _, norm, family = arm
        return chosen(worst[norm][1] if family == "N(0, 0.01)" else 5.0, wobble=(0.0, 0.0, 0.25))

    plant(monkeypatch, claim, error_of)

    def grid(arms, replicates, make):
        one = [{"error": (worst[arm[1]][0] if arm[2] == "N(0, 0.01)" else 5.0) / 100} for arm in arms]
        return {arm: [result] * 3 for arm, result in zip(arms, one, strict=True)}

    monkeypatch.setattr(experiment, "grid", grid)


@pytest.mark.parametrize(
    ("without", "within", "verdict"),
    [
        ((90.0, 30.0), (8.0, 6.0), "supported"),
        ((20.0, 20.0), (50.0, 50.0), "contradicted"),
        ((20.0, 20.0), (20.0, 20.0), "equivalent"),
        ((90.0, 20.0), (8.0, 20.0), "mixed"),
        ((20.0, 20.0), (18.0, 18.0), "inconclusive"),
        ((6.0, 6.0), (5.0, 5.0), "no room here"),
    ],
)
def test_the_verdict_on_made_up_errors(experiment, monkeypatch, without, within, verdict):
    planted(monkeypatch, experiment, without, within)
    outcome = claim.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert list(outcome.regimes) == ["MLP 6 layers relu, at one rate", "MLP 6 layers relu, tuned"]


def test_where_one_regime_has_no_room_the_other_decides(experiment, monkeypatch):
    planted(monkeypatch, experiment, (90.0, 6.0), (8.0, 5.0))
    outcome = claim.measure(experiment)
    assert outcome.verdict == "supported"
    assert list(outcome.regimes.values()) == ["supported", "no room here"]


def test_a_tiny_study_runs(experiment, monkeypatch):
    monkeypatch.setattr(claim, "FAMILIES", {name: FAMILIES[name] for name in ("He", "N(0, 0.01)")})
    monkeypatch.setattr(claim, "networks", lambda experiment: [experiment.mlp(2, width=16)])
    monkeypatch.setattr(claim, "FEW_IMAGES", 64)
    monkeypatch.setattr(claim, "COARSE", (-4,))
    experiment.seed_count = 2
    outcome = claim.measure(experiment)
    rows = {(row[1], row[2]): row[4] for row in outcome.tables[0].rows}
    assert rows["no normalization", "N(0, 0.01)"] > rows["no normalization", "He"]
    assert len(rows) == 4
