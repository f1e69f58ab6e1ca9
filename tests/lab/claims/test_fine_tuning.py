"""Fine-tuning: which images the target has, what each arm freezes, and that doing nothing makes no difference."""

import copy

import pytest
import torch
from tests.threads import one_thread
from torch import nn

import gammabeta as gb
from gammabeta.lab.claims import fine_tuning
from gammabeta.lab.claims.fine_tuning import Cell
from gammabeta.lab.images import networks
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.task import Split


@pytest.fixture(autouse=True)
def as_a_trial():
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def nothing_pretrained():
    """Clear the cache: its key has the arm's name, which these tests give to other norms."""
    fine_tuning.pretrained.cache_clear()
    yield
    fine_tuning.pretrained.cache_clear()


def images(split):
    return {image.numpy().tobytes() for image in split.x_nchw}


def test_no_image_of_the_target_is_pretrained_on(experiment):
    task = experiment.task
    turned = fine_tuning.transfer(task, "rotated")
    back = Split(turned.pool.x_nchw.rot90(-1, (2, 3)).contiguous(), turned.pool.y_n)
    assert not images(turned.source) & images(back)
    assert images(turned.source) | images(back) == images(task.train)
    assert torch.equal(turned.test.x_nchw[5, 0, 0], task.test.x_nchw[5, 0, :, -1])
    new = fine_tuning.transfer(task, "classes")
    assert set(new.source.y_n.tolist()) == set(new.source_validation.y_n.tolist()) == {0, 1, 2, 3, 4}
    for part in (new.pool, new.validation, new.test):
        assert set(part.y_n.tolist()) == {5, 6, 7, 8, 9}


def test_images_that_are_not_square_keep_their_shape():
    split = Split(torch.arange(6.0).reshape(1, 1, 2, 3), torch.tensor([0]))
    assert torch.equal(fine_tuning.rotated(split).x_nchw.flatten(), torch.arange(5.0, -1.0, -1.0))


def test_few_images_are_as_many_of_each_class(experiment):
    pool = fine_tuning.transfer(experiment.task, "classes").pool
    drawn = fine_tuning.few(pool, 3, 1)
    assert torch.bincount(drawn.y_n).tolist() == 5 * [0] + 5 * [3]
    assert images(drawn) <= images(pool)
    assert images(drawn) != images(fine_tuning.few(pool, 3, 2))
    assert len(fine_tuning.few(drawn, 10, 1)) == len(drawn)


def test_batches_larger_than_the_target_go_over_it_evenly():
    split = Split(torch.arange(5.0).reshape(5, 1, 1, 1), torch.arange(5))
    taken = torch.cat([y for _, y in fine_tuning.stream(split, 8, 5, 0)])
    assert len(taken) == 40
    assert torch.bincount(taken).tolist() == 5 * [8]


def changed_by(arm, experiment, norm="batch"):
    """Return the names of what 60 training steps change."""
    model = build(experiment.task, experiment.mlp(2, width=8), norm, 1)
    split = fine_tuning.few(fine_tuning.transfer(experiment.task, "rotated").pool, 2, 1)
    for module in model.modules():
        if isinstance(module, gb.BatchNorm1d):
            module.running_mean.normal_()
    fine_tuning.prepare(model, arm, split.x_nchw)
    before = copy.deepcopy(model.state_dict())
    assert fine_tuning._train(model, split, 0.05, 2, 1)
    return {
        name.rpartition(".")[2] if "hidden.1" in name or "hidden.4" in name else "layers"
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }


def test_each_arm_trains_what_it_says(experiment):
    statistics, affine = {"running_mean", "running_var", "num_batches_tracked"}, {"weight", "bias"}
    assert changed_by("all", experiment) == {"layers"} | affine | statistics
    assert changed_by("frozen", experiment) == {"layers"} | affine
    assert changed_by("recalibrated", experiment) == {"layers"} | affine
    assert changed_by("frozen_all", experiment) == {"layers"}
    assert changed_by("group", experiment, "group") == {"layers"} | affine


def test_recalibrated_statistics_are_those_of_the_target(experiment):
    model = build(experiment.task, experiment.mlp(2, width=8), "batch", 1)
    x = fine_tuning.transfer(experiment.task, "rotated").pool.x_nchw[:20]
    fine_tuning.prepare(model, "recalibrated", x)
    torch.testing.assert_close(model.hidden[1].running_mean, model.hidden[0](x.flatten(1)).mean(0))
    assert model.hidden[1].statistics == gb.statistics.Running()


def test_the_better_evaluation_is_taken():
    result = {"error": 0.4, "loss": 1.0, "exact_error": 0.1, "exact_loss": 2.0}
    assert fine_tuning.by_exact(result)
    assert fine_tuning.score(result) == pytest.approx(0.102)
    assert not fine_tuning.by_exact({**result, "exact_error": 0.4})
    assert not fine_tuning.by_exact({**result, "exact_error": None, "exact_loss": None})


@pytest.fixture
def two_cells(monkeypatch, experiment):
    network = experiment.mlp(2, width=24)
    chosen = [Cell(network, "rotated", 4, 2), Cell(network, "classes", 4, 8)]
    monkeypatch.setattr(fine_tuning, "cells", lambda experiment: chosen)
    return experiment


def batch_becomes(layer, monkeypatch):
    whole = networks.norm

    def norm(name, channels, positions=2):
        return layer(channels) if name == "batch" else whole(name, channels, positions)

    monkeypatch.setattr(networks, "norm", norm)


class Drowning(gb.BatchNorm1d):
    """Normalizes noise in training; frozen statistics work as usual."""

    def forward(self, x):
        if self.training and self.statistics == gb.statistics.Batch() and torch.is_grad_enabled() and len(x) < 32:
            x = torch.randn_like(x)
        return super().forward(x)


def test_harmful_batch_statistics_are_seen(two_cells, monkeypatch):
    batch_becomes(Drowning, monkeypatch)
    outcome = fine_tuning.measure(two_cells)
    assert outcome.verdict == "supported", outcome.sentence
    assert len(outcome.tables[0].rows) == 2 * len(fine_tuning.ARMS)


def test_where_training_gains_nothing_there_is_no_verdict(two_cells, monkeypatch):
    monkeypatch.setattr(fine_tuning, "STEPS", 1)
    monkeypatch.setattr(fine_tuning, "MARGIN", 100.0)
    outcome = fine_tuning.measure(two_cells)
    assert outcome.verdict == "no room here"
    assert outcome.sentence.startswith("no cell has room")


def test_cells_that_go_the_other_way_are_named():
    def effect(name, values):
        return fine_tuning.CRITERION.effect(name, values)

    each = [effect("rotated, batches of 8", [-9.0, -9.5, -8.5]), effect("rotated, batches of 2", [14.0, 15.0, 16.0])]
    found = {(cell.name, arm): [50.0, 52.0] for cell in each for arm in fine_tuning.ARMS}
    found["rotated, batches of 8", "group"] = [47.0, 47.0]
    regimes = {cell.name: cell.verdict for cell in each} | {"classes": "no room here"}
    sentence = fine_tuning._sentence(each, found, regimes)
    assert "rotated, batches of 8 -9.0 [-10.2, -7.8] (contradicted); rotated, batches of 2 +15.0 [" in sentence
    assert "GroupNorm, all trained -4.0 to +0.0, " in sentence
    assert sentence.endswith("; 1 cells without room")


def test_a_network_is_pretrained_once_and_not_changed_by_what_follows(experiment):
    settings = {
        "task": dict(experiment.source),
        "network": dict(experiment.mlp(2, width=8)),
        "pretraining_rate": 0.25,
        "target": "classes",
        "per_class": 2,
        "batch_size": 8,
        "rate": 0.1,
        "seed": 1,
    }
    first = fine_tuning.tuned_on(**settings, arm="frozen")
    fine_tuning.tuned_on(**settings, arm="all")
    assert fine_tuning.pretrained.cache_info().misses == 1
    assert fine_tuning.tuned_on(**settings, arm="frozen") == first
    untrained = fine_tuning.tuned_on(**settings, arm="untrained")
    assert untrained["source_accuracy"] > 0.8
    assert nn.Linear in {type(fine_tuning.head(build(experiment.task, experiment.convolutional, "batch", 1)))}
