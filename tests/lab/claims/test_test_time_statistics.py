"""Statistics at test time: what each kind computes, and the claim's branches."""

import pytest
import torch
from tests.threads import one_thread

import gammabeta as gb
from gammabeta.lab.claims import test_time_statistics as claim
from gammabeta.lab.images.test_time_together import CONDITIONS, SIZES, batch_statistics


@pytest.fixture(autouse=True)
def as_a_trial():
    with one_thread():
        yield


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    layer = gb.BatchNorm2d(3).eval()
    for tensor in (layer.weight, layer.bias, layer.running_mean):
        tensor.data.normal_(generator=generator)
    layer.running_var.uniform_(0.5, 2.0, generator=generator)
    return layer


X = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(1)) * 2 + 1


@torch.no_grad()
def test_a_batch_of_its_own_statistics_is_a_batch_in_training(layer):
    with batch_statistics(layer, 4, 0.0):
        found = layer(X)
    trained = gb.BatchNorm2d(3)
    trained.load_state_dict(layer.state_dict())
    torch.testing.assert_close(found, torch.cat([trained(part) for part in X.split(4)]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_mixture_weighs_the_running_statistics_by_their_images(layer):
    running = layer(X)
    with batch_statistics(layer, 4, 1e9):
        torch.testing.assert_close(layer(X), running, rtol=1e-5, atol=1e-5)
    with batch_statistics(layer, 4, 12.0):
        found = layer(X[:4])
    variance, mean = torch.var_mean(X[:4], (0, 2, 3), correction=0)
    mixed = torch.nn.functional.batch_norm(
        X[:4], 0.75 * layer.running_mean + 0.25 * mean, 0.75 * layer.running_var + 0.25 * variance,
        layer.weight, layer.bias, eps=layer.eps,
    )  # fmt: skip
    torch.testing.assert_close(found, mixed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(X), running)


@torch.no_grad()
def test_an_activation_of_the_layer_stays():
    layer = gb.BatchNorm2d(3, activation="relu").eval()
    with batch_statistics(layer, 8, 0.0):
        assert float(layer(X).min()) == 0.0


def test_a_trained_network_is_tested_with_every_kind(experiment):
    network = dict(experiment.mlp(2, width=16))
    settings = {"network": network, "norm": "batch", "batch_size": 32, "steps": 60, "rate": 0.1, "seed": 1}
    errors = claim.tested(task=experiment.drawn(1), **settings)["errors"]
    assert set(errors) == set(CONDITIONS)
    assert all(set(of) == set(claim.STATISTICS) for of in errors.values())
    assert errors["clean"]["running"] < 0.2
    assert errors["clean"]["batch 1"] > 0.7  # one value per statistic: the output is β, whatever the image
    assert errors["clean"]["mixed 64"] < 0.25
    assert errors["contrast"][f"batch {max(SIZES)}"] < errors["contrast"]["running"] + 0.02


def plant(monkeypatch, clean, running, own):
    """Plant the errors in percent: on clean images, and on corrupted ones by running statistics and by the batch's."""

    def replicate(wobble):
        def of(error, batch):
            return {**dict.fromkeys(claim.STATISTICS, error / 100), claim.JUDGED: (batch + wobble) / 100}

        corrupted = {name: of(running[index], own[index]) for index, name in enumerate(CONDITIONS[1:])}
        return {"clean": of(clean, clean), **corrupted}

    found = {"MLP": [replicate(wobble) for wobble in (0.0, 0.25, 0.5)]}
    monkeypatch.setattr(claim, "_runs", lambda experiment, seeds: found)


@pytest.mark.parametrize(
    ("running", "own", "verdict"),
    [
        ((30.0,) * 4, (10.0,) * 4, "supported"),
        ((30.0,) * 4, (50.0,) * 4, "contradicted"),
        ((30.0,) * 4, (30.0,) * 4, "equivalent"),
        ((30.0,) * 4, (10.0, 10.0, 10.0, 30.0), "mixed"),
        ((30.0,) * 4, (27.8,) * 4, "inconclusive"),
        ((6.0,) * 4, (1.0,) * 4, "no room here"),  # the corruption costs too little
    ],
)
def test_the_verdict_on_made_up_errors(experiment, monkeypatch, running, own, verdict):
    plant(monkeypatch, 5.0, running, own)
    outcome = claim.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert len(outcome.regimes) == 4


def test_a_tiny_study_runs(experiment, monkeypatch):
    monkeypatch.setattr(claim, "EPOCHS", 2)
    monkeypatch.setattr(claim, "COARSE", (-3,))
    experiment.seed_count = 2
    outcome = claim.measure(experiment)
    assert len(outcome.tables[0].rows) == len(CONDITIONS)
    assert outcome.room.holds, outcome.room.control
