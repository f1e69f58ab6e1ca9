"""The claims on training: their measures on cases with a known answer."""

import math

import pytest
import torch

from gammabeta.lab.claims import (
    affine_restores,
    moving_average,
    noise_regularizes,
    weight_decay,
)
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.task import Split
from gammabeta.lab.images.training import Training, fit, subset
from gammabeta.lab.trials.trial import Trial

TASK = {"data": "digits", "fingerprint": "scikit-learn"}
MLP = {"kind": "mlp", "depth": 2, "width": 16, "activation": "relu", "init": "matched"}


# --- moving_average ---


def test_running_statistics_forget_by_the_law_and_not_by_its_rule_of_thumb(experiment):
    outcome = moving_average.measure(experiment)
    assert outcome.verdict == "supported", outcome.sentence
    rows = {row[1]: row for row in outcome.tables[0].rows if row[0].startswith("MLP")}
    assert rows[0.9][2] == pytest.approx(-1 / math.log(0.1), rel=0.01)
    assert rows[0.9][2] < 0.5 * rows[0.9][4]


def test_another_average_is_seen(experiment, monkeypatch):
    monkeypatch.setattr(moving_average, "law", lambda momentum: 1 / momentum)
    monkeypatch.setattr(moving_average, "MOMENTA", (0.5, 0.7, 0.9))
    assert moving_average.measure(experiment).effects[0].verdict == "contradicted"


# --- affine_restores ---


def test_the_identity_fails_with_another_gamma(monkeypatch):
    assert affine_restores.identity(mean=3.0, spread=0.5, eps=1e-2)["deviation"] < 1
    whole = torch.var_mean
    monkeypatch.setattr(torch, "var_mean", lambda x, dim, correction: whole(x, dim=dim, correction=1))
    assert affine_restores.identity(mean=3.0, spread=0.5, eps=1e-2)["deviation"] > 1


@pytest.mark.parametrize(
    ("with_affine", "verdict"),
    [((0.05, 0.04), "supported"), ((0.2, 0.22), "contradicted"), ((0.1, 0.101), "equivalent")],
)
def test_every_replicate_fits_at_its_own_rate(experiment, monkeypatch, with_affine, verdict):
    """Planted: replicate r fits best at 2^(r mod 2); elsewhere its loss is ten times as large."""

    def train(self, *, norm, rate, seed, report, **_):
        assert report == "train"
        loss = with_affine[seed % 2] if norm == "batch" else 0.1
        loss *= (1 + seed / 100) * (1 if rate == 2.0 ** (seed % 2) else 10)
        return Trial(f"{__name__}:planted", {"train_loss": loss, "norm": norm, "rate": rate, "seed": seed})

    monkeypatch.setattr(Experiment, "train", train)
    outcome = affine_restores.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    chosen = affine_restores._chosen(experiment, ["relu"], experiment.seeds(4, 20))
    assert chosen["relu, batch"].exponents == [1, 0, 1, 0]


def planted(*, train_loss, **_):
    return {"train_loss": train_loss, "error": 0.1}


# --- noise_regularizes ---


def test_paths_are_compared_at_equal_training_loss():
    one = [(1.0, 0.9), (0.1, 0.5), (0.01, 0.4)]
    higher = [(train, test + 0.2) for train, test in one]
    assert noise_regularizes.difference(higher, one, 0.5) == pytest.approx(0.2)
    # a slower run on the same curve does not differ where both have been
    assert noise_regularizes.difference(one[:2], one, 0.5) == pytest.approx(0.0)
    assert noise_regularizes.difference([(1.0, 0.9)], one, 0.5) == 0.0


def test_a_path_holds_only_falling_training_losses():
    result = {"curve": [(0, 2.3, 2.3), (10, 1.0, 1.1), (20, 1.2, 0.5), (30, None, 1.0), (40, 0.5, 0.8)]}
    assert noise_regularizes.path(result) == [(2.3, 2.3), (1.0, 1.1), (0.5, 0.8)]


# --- weight_decay ---


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_scaled_weights_give_the_same_output_and_a_gradient_over_the_scale(scale):
    result = weight_decay.rescaled(scale=scale, seed=0)
    assert result["output"] < 1
    assert result["gradient"] < 1


def test_an_epsilon_that_is_not_scaled_is_seen(monkeypatch):
    whole = weight_decay.gb.functional.batch_norm
    monkeypatch.setattr(weight_decay.gb.functional, "batch_norm", lambda *of, eps, **more: whole(*of, eps=1e-3, **more))
    assert weight_decay.rescaled(scale=1e-2, seed=0)["output"] > 1


def test_the_replay_of_no_decay_is_training_on_a_sphere():
    base = {"task": TASK, "network": MLP, "rate": 0.1, "schedule": "constant", "steps": 30, "seed": 1}
    shrunk = weight_decay.decayed(**base, decay=0.1, report="test")
    kept = weight_decay.decayed(**base, decay=0.0, report="test")
    assert shrunk["norms"][-1] < 0.8 * kept["norms"][-1]
    # without decay there is next to nothing to replay, and both ways lead to the same place
    replayed = weight_decay.decayed(**base, decay=0.0, report="test", replay=True)
    assert replayed["loss"] == pytest.approx(kept["loss"], rel=0.05)


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_the_trained_network_too_ignores_the_scale_of_its_weights(scale):
    result = weight_decay.rescaled_network(task=TASK, network=MLP, scale=scale, seed=0)
    assert result["output"] < 1
    assert result["gradient"] < 1


# --- what they share ---


def test_a_subset_has_the_share_of_wrong_labels(digits):
    clean, noisy = (subset(digits.train, 200, 10, share, seed=5) for share in (0.0, 0.2))
    assert torch.equal(clean.x_nchw, noisy.x_nchw)
    assert int((clean.y_n != noisy.y_n).sum()) == 40
    assert isinstance(clean, Split)


def test_only_the_last_layer_moves_where_only_it_is_trained(digits):
    options = {"network": MLP, "norm": "batch", "rate": 0.5, "batch_size": 16, "seed": 2}
    before = fit(digits, digits.train, Training(**options, steps=1), lambda step, model: True).model
    after = fit(digits, digits.train, Training(**options, steps=5, only_last=True)).model
    moved = [
        name
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert moved == ["classifier.weight", "classifier.bias"]


def test_decay_spares_gamma_and_beta_and_a_cosine_ends_at_zero(digits):
    options = {"network": MLP, "norm": "batch", "rate": 0.1, "batch_size": 16, "seed": 2, "steps": 20}
    seen = []

    def look(step, model):
        seen.append(float(model.classifier.weight.detach().norm()))
        return False

    fit(digits, digits.train, Training(**options, schedule="cosine"), look)
    assert abs(seen[-1] - seen[-2]) < 0.05 * abs(seen[2] - seen[1])


@pytest.fixture
def digits():
    from gammabeta.lab.sources import load

    return load(TASK)
