"""Where γ and β end: distances with a known answer, sigmoid's linear part, and each verdict."""

import math

import pytest
import torch

from gammabeta.lab.claims import learned_affine
from gammabeta.lab.claims.learned_affine import distances, linear
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build
from gammabeta.lab.trials.trial import Trial


def test_the_distances_are_zero_where_the_original_is_restored_up_to_a_scale():
    mu, sigma = torch.tensor([0.5, -2.0, 1.0]), torch.tensor([0.5, 1.0, 4.0])
    assert distances(7 * sigma, 7 * mu, mu, sigma) == {
        "mean": pytest.approx(0, abs=1e-6),
        "spread": pytest.approx(0, abs=1e-6),  # float32, whose log differs between processors
    }
    # a negative γ with β along turns the sign of the output only
    assert distances(-sigma, -mu, mu, sigma)["mean"] == pytest.approx(0)
    standardized = distances(torch.ones(3), torch.zeros(3), mu, sigma)
    assert standardized["mean"] == pytest.approx((1 + 2 + 0.25) / 3)
    logs = [math.log(2), 0.0, -math.log(4)]
    assert standardized["spread"] == pytest.approx(sum(abs(log - sum(logs) / 3) for log in logs) / 3)


def test_the_linear_part_of_sigmoid_ends_where_the_tangent_is_ten_percent_off():
    ends = [z for z in torch.linspace(0.5, 2, 1501).tolist() if not bool(linear(torch.tensor(z)))]
    assert ends[0] == pytest.approx(1.11, abs=0.01)
    z = torch.tensor(1.11)
    assert float(z / 4 / (torch.sigmoid(z) - 0.5)) == pytest.approx(1.1, abs=2e-3)
    # of a standard normal input this is the share within ±1.11
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert float(linear(normal).float().mean()) == pytest.approx(math.erf(1.11 / math.sqrt(2)), abs=0.005)


def test_the_share_is_that_of_the_norms_outputs(experiment):
    model = build(experiment.task, experiment.mlp(2, width=16, activation="sigmoid"), "batch", 1)
    x = experiment.task.train.x_nchw[:128]
    assert 0.65 < learned_affine.linear_share(model, x) < 0.85
    for norm in learned_affine.norms_of(model):
        torch.nn.init.constant_(norm.weight, 1e-3)
    assert learned_affine.linear_share(model, x) == 1.0
    plain = build(experiment.task, experiment.mlp(2, width=16), "none", 1)
    assert learned_affine.linear_share(plain, x) is None


def made_up(mean, spread, fall=20.0, *, moved=0.3, error=0.05):
    def runs(experiment, seeds):
        return {
            name: [
                {
                    "layers": [
                        {
                            "mean": mean + 0.001 * place,
                            "spread": spread + 0.001 * place,
                            "start": {"mean": 1.0, "spread": 1.0},
                            "gamma": moved,
                            "beta": moved,
                        }
                    ],
                    "linear": [0.74, 0.74 - (fall + 0.1 * place) / 100],
                    "error": error,
                }
                for place, _ in enumerate(seeds)
            ]
            for name in learned_affine.ACTIVATIONS
        }

    return runs


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (made_up(0.5, 0.5), "supported"),
        (made_up(0.5, 1.5), "contradicted"),
        (made_up(1.0, 1.0, 0.0), "equivalent"),
        (made_up(0.5, 0.5, 0.0), "mixed"),  # sigmoid's share does not fall
        (made_up(0.5, 0.5, moved=0.01), "no room here"),
        (made_up(0.5, 0.5, error=0.8), "no room here"),
    ],
)
def test_made_up_ends_are_judged_right(experiment, monkeypatch, given, verdict):
    monkeypatch.setattr(learned_affine, "_runs", given)
    outcome = learned_affine.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert outcome.room.holds == (verdict != "no room here")


def test_a_run_without_batch_norm_or_with_a_loss_that_is_not_finite_gives_no_room(experiment, monkeypatch):
    lost = {"layers": [], "linear": [], "error": 1.0}
    monkeypatch.setattr(
        learned_affine, "_runs", lambda experiment, seeds: {name: [lost] * 2 for name in learned_affine.ACTIVATIONS}
    )
    outcome = learned_affine.measure(experiment)
    assert outcome.verdict == "no room here"
    assert outcome.tables[0].rows[0][2:] == [None] * 4


def test_every_replicate_is_measured_at_the_rate_that_it_chose(experiment, monkeypatch):
    """Planted: replicate r has its least validation error at 2^-(3 + r mod 2)."""

    def train(self, *, rate, seed, network, **_):
        error = 0.05 + 0.1 * abs(math.log2(rate) + 3 + seed % 2)
        return Trial(f"{__name__}:planted", {"error": error, "activation": network["activation"], "at": [rate, seed]})

    monkeypatch.setattr(Experiment, "train", train)
    whole = learned_affine.Trial
    monkeypatch.setattr(
        learned_affine,
        "Trial",
        lambda run, of: whole(
            f"{__name__}:planted", {"error": 0.0, "at": [of["rate"], of["seed"], of["task"]["split"]]}
        ),
    )
    found = learned_affine._runs(experiment, experiment.seeds(4, 20))
    assert [result["at"] for result in found["relu"]] == [
        [2.0 ** (-3 - seed % 2), seed, seed] for seed in experiment.seeds(4, 20)
    ]


def planted(*, error, at, **_):
    return {"error": error, "loss": 0.5, "at": at}


def test_a_trial_returns_what_training_did_to_gamma_and_beta(experiment, monkeypatch):
    monkeypatch.setattr(learned_affine, "EPOCHS", 2)
    network = dict(experiment.mlp(2, width=16, activation="sigmoid"))
    result = learned_affine.affine(task=experiment.drawn(1), network=network, rate=0.1, seed=1)
    assert len(result["layers"]) == 2
    assert all(layer["gamma"] > 0 and layer["beta"] > 0 for layer in result["layers"])
    assert 0.6 < result["linear"][0] < 0.9
