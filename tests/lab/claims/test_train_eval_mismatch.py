"""The mismatch between training and evaluation: small supports the claim; no statistics leave no room."""

import pytest
import torch

from gammabeta.lab.claims import train_eval_mismatch as claim
from gammabeta.lab.images.corruption import CORRUPTIONS, corrupted


def plant(monkeypatch, **gains):
    """Plant by how many points recalibration raises the accuracy in each regime; six replicates that hardly differ."""
    gains = {"usual": 0.0, **gains}

    def run(gain, wobble):
        error = 0.05 + wobble
        loss = {"moving_loss": 0.21, "loss": 0.2}
        return {"error": error, "moving_error": error + gain / 100, "gaps": [0.1, 0.3], **loss}

    runs = {("MLP", regime): [run(gain, 0.001 * n) for n in range(6)] for regime, gain in gains.items()}
    monkeypatch.setattr(claim, "_runs", lambda experiment, seeds: runs)
    return runs


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ({"momentum": 0.1}, "supported"),
        ({"usual": 5.0, "momentum": 5.0}, "contradicted"),
        ({"momentum": 5.0}, "mixed"),
        ({"momentum": 1.0}, "inconclusive"),
        ({"momentum": -5.0}, "mixed"),  # a mismatch that raises the accuracy is a mismatch too
    ],
)
def test_a_small_mismatch_supports_the_claim(experiment, monkeypatch, gains, verdict):
    plant(monkeypatch, **gains)
    outcome = claim.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert outcome.effects[0].margin == (-1.0, 1.0)


@pytest.mark.parametrize("change", [{"error": 0.9, "moving_error": 0.9}, {"moving_loss": 0.2}])
def test_an_untrained_network_and_one_without_statistics_have_no_mismatch(experiment, monkeypatch, change):
    for runs in plant(monkeypatch).values():
        for run in runs:
            run.update(change)
    assert claim.measure(experiment).verdict == "no room here"


def test_gaps_are_averaged_over_the_replicates_that_have_them():
    series = claim._by_layer("MLP", [[0.1, 0.3], [0.3, 0.5], []])
    assert (series.x, series.y) == ([1, 2], [pytest.approx(0.2), pytest.approx(0.4)])
    assert claim._by_layer("MLP", [[]]) is None


def test_a_low_momentum_lags_and_recalibration_mends_it(experiment):
    settings = {"network": dict(experiment.mlp(2, width=16)), "batch_size": 32, "steps": 30, "rate": 0.1, "seed": 1}
    lagging, usual = (
        claim.mismatch(task=experiment.drawn(1), **settings, momentum=momentum, report="test")
        for momentum in (0.001, 0.1)
    )
    assert lagging["error"] == usual["error"]
    assert lagging["moving_error"] > usual["moving_error"] + 0.05
    assert min(lagging["gaps"]) > 3 * max(usual["gaps"])
    assert usual["shifted"]["error"] > usual["error"]
    assert set(usual["validation"]) == {"error", "loss", "moving_error", "moving_loss"}


def test_corruptions_are_what_they_say():
    x = torch.zeros(2, 1, 9, 9)
    x[:, :, 4, 7] = 9.0
    assert corrupted(x, "blur", 0)[0, 0, 4, 6] == pytest.approx(1.0)
    row, column = divmod(int(corrupted(x, "rotation", 0)[0, 0].argmax()), 9)
    assert ((row - 4) ** 2 + (column - 4) ** 2) ** 0.5 == pytest.approx(3, abs=0.7)
    assert row != 4
    assert float(corrupted(torch.zeros(64, 1, 8, 8), "noise", 0).std()) == pytest.approx(1, abs=0.05)
    assert corrupted(x, "contrast", 0).unique().tolist() == [0.5, 5.0]
    with pytest.raises(ValueError, match="expected one of noise, blur, rotation, contrast, got fog"):
        corrupted(x, "fog", 0)
    assert len(CORRUPTIONS) == 4
