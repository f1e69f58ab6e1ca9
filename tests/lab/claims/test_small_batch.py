"""Small batches: equal images for every batch size, both conditions of a regime, and what is reported beside them."""

import pytest
from tests.lab.claims.made_up_rates import chosen, plant

from gammabeta.lab.claims import small_batch
from gammabeta.lab.claims.small_batch import Plan


def test_every_batch_size_sees_equally_many_images(experiment):
    for quick in (True, False):
        experiment.quick = quick
        for plan in small_batch.plans(experiment):
            seen = {arm["steps"] * arm["batch_size"] for arm in plan.arms(experiment).values()}
            assert max(seen) - min(seen) < 0.15 * max(seen)  # an epoch's incomplete last batch is left out
            images = plan.images or len(experiment.task.train)
            assert max(seen) == pytest.approx(20 * images, rel=0.03)
            assert {arm["momentum"] for arm in plan.arms(experiment).values()} == {0.9}


def test_values_of_an_image_in_the_layer_with_the_fewest(experiment):
    assert small_batch.values_per_image(experiment, experiment.mlp(2)) == 1
    assert small_batch.values_per_image(experiment, experiment.convolutional) == 16


@pytest.mark.parametrize(
    ("batch", "group", "large", "verdict"),
    [
        (12.0, 4.0, 3.0, "supported"),
        (12.0, 13.0, 3.0, "equivalent"),  # GroupNorm rises as much: it is not the statistics
        (12.0, 24.0, 3.0, "contradicted"),
        (3.0, 3.0, 3.0, "equivalent"),
        (5.2, 3.0, 3.0, "inconclusive"),
        (3.0, 3.0, 90.0, "no room here"),
    ],
)
def test_a_regime_needs_both_the_rise_and_the_excess(experiment, monkeypatch, batch, group, large, verdict):
    monkeypatch.setattr(
        small_batch, "plans", lambda experiment: [Plan(experiment.mlp(2), ("batch", "group"), (2,), 64)]
    )
    errors = {("batch", 2): batch, ("group", 2): group, ("batch", 32): large, ("group", 32): 3.0, ("ghost:2", 32): 11.0}
    plant(monkeypatch, small_batch, lambda cell: errors[cell[1:]])
    outcome = small_batch.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    if verdict == "supported":
        ghost = next(effect for effect in outcome.effects if "statistics of 2 images" in effect.name)
        assert ghost.value == pytest.approx(8.0)


def test_batch_sizes_that_differ_are_mixed_and_recalibration_stands_beside(experiment, monkeypatch):
    errors = {2: chosen(4.0, moving=20.0), 4: chosen(3.0), 32: chosen(3.0)}
    plant(monkeypatch, small_batch, lambda cell: chosen(3.0) if cell[1] == "group" else errors[cell[2]])
    outcome = small_batch.measure(experiment)
    assert outcome.verdict == "mixed"
    assert list(outcome.regimes.values()) == ["supported", "equivalent"]
    effects = {effect.name.rpartition(": ")[2]: effect.value for effect in outcome.effects if "of 2:" in effect.name}
    assert effects["BatchNorm's rise"] == pytest.approx(17.0)
    assert effects["BatchNorm's rise with exact statistics"] == pytest.approx(1.0)


def test_a_tiny_study_runs(experiment, monkeypatch):
    monkeypatch.setattr(
        small_batch, "plans", lambda experiment: [Plan(experiment.mlp(2, width=8), ("batch", "group"), (4,), 32)]
    )
    monkeypatch.setattr(small_batch, "EPOCHS", 4)
    monkeypatch.setattr(small_batch, "COARSE", (-4,))
    experiment.seed_count = 2
    outcome = small_batch.measure(experiment)
    assert list(outcome.regimes) == ["MLP 2 layers relu, batches of 4"]
    assert len(outcome.tables[0].rows) == 5
