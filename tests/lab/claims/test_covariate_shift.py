"""Covariate shift: what CKA ignores, what the gradient form holds fixed, and that doing nothing is no reduction."""

import pytest
import torch
from tests.lab.claims.idle import Shuffle
from torch import nn
from torch.nn import functional

from gammabeta.lab.claims import covariate_shift
from gammabeta.lab.images import networks
from gammabeta.lab.images.networks import build


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cka_of_a_rotated_scaled_and_shifted_copy_is_one():
    x = random(64, 12) * torch.arange(1, 13) + 5
    rotation, _ = torch.linalg.qr(random(12, 12, seed=1))
    assert covariate_shift.cka(x, 7.5 * x @ rotation - 3) == pytest.approx(1.0, abs=1e-12)


def test_cka_sees_a_change_that_is_no_rotation():
    x = random(64, 12)
    # One feature of twelve is scaled: Σλᵢ aᵢ² over the root of Σλᵢ² Σλᵢ² aᵢ⁴, here for nearly equal λ.
    stretched = x * torch.tensor([3.0] + 11 * [1.0])
    assert covariate_shift.cka(x, stretched) < 0.85
    # Of 64 samples with 12 unrelated features each the expectation is about 12/64, not 0.
    assert covariate_shift.cka(x, random(64, 12, seed=2)) < 0.4
    assert covariate_shift.cka(x, torch.ones(64, 3)) is None


def test_cka_is_that_of_the_features_own_matrices():
    x, y = random(20, 5), random(20, 7, seed=1)
    centered_x, centered_y = x - x.mean(0), y - y.mean(0)
    cross = (centered_y.T @ centered_x).norm() ** 2
    expected = cross / ((centered_x.T @ centered_x).norm() * (centered_y.T @ centered_y).norm())
    assert covariate_shift.cka(x, y) == pytest.approx(float(expected), rel=1e-12)


def test_moments_see_what_cka_does_not():
    x = random(64, 12)
    assert covariate_shift.moments_moved(x, x) == 0
    assert covariate_shift.moments_moved(x, x + x.std(dim=0, correction=0)) == pytest.approx(1.0)
    assert covariate_shift.moments_moved(x, x * torch.e) > 0.99


def test_the_gradient_form_moves_only_the_earlier_layers(experiment):
    model = build(experiment.task, experiment.mlp(2, width=16), "none", 1)
    x, y = experiment.task.train.x_nchw[:32], experiment.task.train.y_n[:32]
    order = covariate_shift.called(model, x)
    assert order == [model.hidden[0], model.hidden[3], model.classifier]
    shift = covariate_shift.GradientShift(model, order, 0)
    shift.before(x, y)
    with torch.no_grad():
        model.classifier.weight.add_(1.0)  # comes after every layer that is measured, or is its own
    assert shift.after() == {"cosine": pytest.approx(0.0, abs=1e-12), "l2": 0.0}
    shift.before(x, y)
    with torch.no_grad():
        model.hidden[0].weight.add_(0.1)
    stepped = model.hidden[0].weight.clone()
    found = shift.after()
    assert torch.equal(model.hidden[0].weight, stepped)
    # The same by hand: the second layer's gradient, with the first one's step and without.
    gradients = []
    for weight in (stepped - 0.1, stepped):
        with torch.no_grad():
            model.hidden[0].weight.copy_(weight)
        loss = functional.cross_entropy(model(x), y)
        gradients.append(torch.autograd.grad(loss, [model.hidden[3].weight, model.classifier.weight]))
    # float32: (w + 0.1) − 0.1 is w to its last bits
    expected = sum(float((b - a).norm() / a.norm()) for a, b in zip(*gradients, strict=True)) / 2
    assert found["l2"] == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def idle(monkeypatch, experiment):
    """A BatchNorm that only shuffles channels, in one small network."""
    monkeypatch.setattr(
        networks, "norm", lambda name, channels, *_: Shuffle(channels) if name == "batch" else nn.Identity()
    )
    monkeypatch.setattr(covariate_shift, "networks", lambda experiment: [experiment.mlp(3, width=24)])
    return experiment


def test_without_a_shift_there_is_no_verdict(idle, monkeypatch):
    monkeypatch.setattr(covariate_shift, "LEAST", {"input": 1.0, "l2": 1e-2})
    monkeypatch.setattr(covariate_shift, "_races", lambda *_: {})
    outcome = covariate_shift.measure(idle)
    assert outcome.verdict == "no room here"
    assert outcome.effects == []
    assert outcome.sentence == "no network has room: without normalization it does not train, or nothing shifts"


def test_a_smaller_shift_is_seen(experiment, monkeypatch):
    """With a layer that passes on a hundredth of every change, the criterion is met."""
    monkeypatch.setattr(covariate_shift, "networks", lambda experiment: [experiment.mlp(3, width=24)])
    whole = covariate_shift.size
    runs = []

    def size(result, form):
        runs.append(form)
        value = whole(result, form)
        return value * result.get("times", 1.0)

    monkeypatch.setattr(covariate_shift, "size", size)
    whole_records = experiment.records

    def calmer(trials):
        return [
            {**record, "result": {**record["result"], "times": 0.01}}
            if trial.settings.get("norm") == "batch"
            else record
            for trial, record in zip(trials, whole_records(trials), strict=True)
        ]

    monkeypatch.setattr(experiment, "records", calmer)
    monkeypatch.setattr(covariate_shift, "_races", lambda *_: {})
    outcome = covariate_shift.measure(experiment)
    assert outcome.verdict == "supported"
    assert list(outcome.regimes.values()) == ["supported"]
    assert outcome.sentence.startswith(
        "times the shift with BatchNorm over that without: MLP 3 layers relu (supported)"
    )
