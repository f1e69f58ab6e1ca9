"""Adaptation of a pretrained network: the target's images, what each arm trains, and the two claims' verdicts."""

import copy
from dataclasses import replace

import pytest
import torch
from tests.threads import one_thread

import gammabeta as gb
from gammabeta.lab.claims import affine_only, fine_tuning
from gammabeta.lab.images import adaptation, adaptation_together, transfer
from gammabeta.lab.images.adaptation import Adapted, Cell
from gammabeta.lab.images.descent import descend, epochs, judged
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.task import Split
from gammabeta.lab.images.together import stack
from gammabeta.lab.procedure import Chosen


@pytest.fixture(autouse=True)
def as_a_trial():
    transfer.pretrained.cache_clear()
    with one_thread():
        yield
    transfer.pretrained.cache_clear()


def images(split):
    return {image.numpy().tobytes() for image in split.x_nchw}


def test_no_image_of_the_target_is_pretrained_on(experiment):
    task = experiment.task
    turned = transfer.transfer(task, "rotated")
    back = Split(turned.pool.x_nchw.rot90(-1, (2, 3)).contiguous(), turned.pool.y_n)
    assert not images(turned.source) & images(back)
    assert images(turned.source) | images(back) == images(task.train)
    assert torch.equal(turned.test.x_nchw[5, 0, 0], task.test.x_nchw[5, 0, :, -1])
    new = transfer.transfer(task, "classes")
    assert set(new.source.y_n.tolist()) == set(new.source_validation.y_n.tolist()) == {0, 1, 2, 3, 4}
    for part in (new.pool, new.validation, new.test):
        assert set(part.y_n.tolist()) == {5, 6, 7, 8, 9}


def test_images_that_are_not_square_keep_their_shape():
    split = Split(torch.arange(6.0).reshape(1, 1, 2, 3), torch.tensor([0]))
    assert torch.equal(transfer.rotated(split).x_nchw.flatten(), torch.arange(5.0, -1.0, -1.0))


def test_few_images_are_as_many_of_each_class(experiment):
    pool = transfer.transfer(experiment.task, "classes").pool
    drawn = transfer.few(pool, 3, 1)
    assert torch.bincount(drawn.y_n).tolist() == 5 * [0] + 5 * [3]
    assert images(drawn) <= images(pool)
    assert images(drawn) != images(transfer.few(pool, 3, 2))
    assert len(transfer.few(drawn, 10, 1)) == len(drawn)


def test_batches_larger_than_the_target_go_over_it_evenly():
    taken = epochs(5, 8, 5, 0)
    assert taken.shape == (5, 8)
    assert torch.bincount(taken.flatten()).tolist() == 5 * [8]


def changed_by(arm, experiment, norm="batch"):
    """Return the names of what 20 training steps change."""
    model = build(experiment.task, experiment.mlp(2, width=8), norm, 1)
    split = transfer.few(transfer.transfer(experiment.task, "rotated").pool, 2, 1)
    for module in model.modules():
        if isinstance(module, gb.BatchNorm1d):
            module.running_mean.normal_()
    adaptation_together.prepare(model, arm, split)
    whole = stack([model])
    adaptation_together.choose_parameters(whole, arm)
    before = copy.deepcopy(whole.state_dict())
    assert descend(whole, [split], [epochs(len(split), 2, 20, 1)], [0.05]) == [True]
    norms, head = ("hidden.1.", "hidden.4."), "classifier."
    changed = {name for name, value in whole.state_dict().items() if not torch.equal(value, before[name])}
    return {
        name.rpartition(".")[2] if name.startswith(norms) else "head" if name.startswith(head) else "layers"
        for name in changed
    }


def test_each_arm_trains_what_it_says(experiment):
    statistics, affine = {"running_mean", "running_var", "num_batches_tracked"}, {"weight", "bias"}
    assert changed_by("all", experiment) == {"layers", "head"} | affine | statistics
    assert changed_by("frozen", experiment) == {"layers", "head"} | affine
    assert changed_by("recalibrated", experiment) == {"layers", "head"} | affine
    assert changed_by("frozen_all", experiment) == {"layers", "head"}
    assert changed_by("affine", experiment) == {"head"} | affine
    assert changed_by("head", experiment) == {"head"}
    assert changed_by("group", experiment, "group") == {"layers", "head"} | affine


def test_recalibrated_statistics_are_those_of_the_target(experiment):
    model = build(experiment.task, experiment.mlp(2, width=8), "batch", 1)
    x = transfer.transfer(experiment.task, "rotated").pool.x_nchw[:20]
    adaptation_together.prepare(model, "recalibrated", Split(x, torch.zeros(20, dtype=torch.int64)))
    torch.testing.assert_close(model.hidden[1].running_mean, model.hidden[0](x.flatten(1)).mean(0))
    assert model.hidden[1].statistics == gb.statistics.Running()


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_members_are_trained_as_each_would_be_alone(experiment, kind):
    network = experiment.mlp(2, width=8) if kind == "mlp" else experiment.convolutional
    models = [build(experiment.task, network, "batch", seed) for seed in (1, 2)]
    pool = transfer.transfer(experiment.task, "rotated").pool
    own = [transfer.few(pool, 2, 1), transfer.few(pool, 3, 2)]
    orders, rates = [epochs(len(split), 8, 6, seed) for seed, split in enumerate(own)], [0.1, 0.02]
    alone = []
    for model, split, order, rate in zip(models, own, orders, rates, strict=True):
        one = stack([copy.deepcopy(model)])
        descend(one, [split], [order], [rate])
        alone += judged(one.eval(), [split])
    whole = stack(models)
    descend(whole, own, orders, rates)
    for one, other in zip(judged(whole.eval(), own), alone, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert torch.equal(one.wrong, other.wrong)


def test_a_network_is_pretrained_once_and_not_changed_by_what_follows(experiment):
    settings = {
        "task": experiment.drawn(1),
        "network": dict(experiment.mlp(2, width=16)),
        "pretraining_rate": 0.125,
        "target": "classes",
        "per_class": 2,
        "batch_size": 8,
        "images": 80,
        "rate": 0.05,
        "seed": 1,
        "report": "test",
    }
    first = adaptation.adapted(**settings, arm="frozen")
    both = adaptation.adapted(**settings, arm="all")
    assert transfer.pretrained.cache_info().misses == 1
    assert adaptation.adapted(**settings, arm="frozen") == first
    untrained = adaptation.adapted(**settings, arm="untrained")
    assert untrained["source_accuracy"] == first["source_accuracy"] > 0.9
    assert first["error"] < untrained["error"] - 0.2
    assert first["validation"]["error"] < 0.6
    assert not first["recalibrated"]
    assert both["recalibrated"] or both["error"] == both["moving_error"]


# --- the claims on made-up results ---


def planted(monkeypatch, claim, source=0.99, **errors):
    """Plant each arm's error in percent, the same in test and validation; three replicates that hardly differ."""

    def results(error):
        return [
            {
                "error": (error + wobble) / 100,
                "validation": {"error": error / 100, "loss": 1.0},
                "source_accuracy": source,
                "recalibrated": False,
            }
            for wobble in (0.0, 0.25, 0.5)
        ]

    def adapt(experiment, cells, arms, replicates):
        chosen = {
            (cell.name, arm): Chosen(results(errors.get(arm, 30.0)), [-4, -4, -4], -4, {-4: 0.3})
            for cell in cells
            for arm in arms
        }
        untrained = {cell.name: results(errors.get("untrained", 90.0)) for cell in cells}
        return Adapted(cells, chosen, untrained, dict.fromkeys(transfer.TARGETS, 0.97))

    monkeypatch.setattr(claim, "adapt", adapt)


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ({"head": 40, "affine": 20, "frozen": 20}, "supported"),
        ({"head": 40, "affine": 20, "frozen": 30}, "supported"),
        ({"head": 40, "affine": 30, "frozen": 10}, "contradicted"),
        ({"head": 20, "affine": 40, "frozen": 40}, "contradicted"),
        ({"head": 20, "affine": 20, "frozen": 20}, "equivalent"),
        ({"head": 40, "affine": 20, "frozen": 18}, "inconclusive"),
        ({"head": 30, "affine": 30, "frozen": 30, "all": 30, "untrained": 31}, "no room here"),
        ({"head": 40, "affine": 20, "frozen": 20, "source": 0.9}, "no room here"),
    ],
)
def test_gamma_and_beta_alone_on_made_up_results(experiment, monkeypatch, errors, verdict):
    planted(monkeypatch, affine_only, **errors)
    outcome = affine_only.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert len(outcome.regimes) == 2


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ({"all": 40, "frozen": 20}, "supported"),
        ({"all": 20, "frozen": 40}, "contradicted"),
        ({"all": 20, "frozen": 20}, "equivalent"),
        ({"all": 22, "frozen": 20}, "inconclusive"),
        ({"all": 40, "frozen": 20, "source": 0.9}, "no room here"),
    ],
)
def test_frozen_statistics_on_made_up_results(experiment, monkeypatch, errors, verdict):
    planted(monkeypatch, fine_tuning, **errors)
    outcome = fine_tuning.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert len({name.rpartition(", ")[2] for name in outcome.regimes}) == 2  # 100 and 400 steps


def test_targets_that_differ_are_mixed(experiment, monkeypatch):
    planted(monkeypatch, fine_tuning, all=40, frozen=20)
    whole = fine_tuning.adapt

    def uneven(*given):
        found = whole(*given)
        other = {key: chosen for key, chosen in found.chosen.items() if "rotated" not in key[0]}
        swapped = {
            (name, {"all": "frozen", "frozen": "all"}[arm]): of
            for (name, arm), of in other.items()
            if arm != "untrained"
        }
        return replace(found, chosen={**found.chosen, **swapped})

    monkeypatch.setattr(fine_tuning, "adapt", uneven)
    assert fine_tuning.measure(experiment).verdict == "mixed"


def test_a_tiny_study_runs(experiment, monkeypatch):
    monkeypatch.setattr(transfer, "EPOCHS", 3)
    monkeypatch.setattr(adaptation, "COARSE", (-5, -4))
    monkeypatch.setattr(
        affine_only, "cells", lambda experiment: [Cell(experiment.mlp(2, width=16), "rotated", 4, 8, 160)]
    )
    experiment.seed_count = 2
    outcome = affine_only.measure(experiment)
    assert len(outcome.effects) in (0, 3)
    assert len(outcome.tables[0].rows) == len(affine_only.SHOWN)
