"""Few-shot episodes: their classes and images, what the arms train, and the claim's branches."""

import pytest
import torch
from tests.lab.claims.made_up_rates import chosen, plant
from tests.threads import one_thread

import gammabeta as gb
from gammabeta.lab.claims import few_shot as claim
from gammabeta.lab.images import transfer


@pytest.fixture(autouse=True)
def as_a_trial():
    transfer.pretrained.cache_clear()
    with one_thread():
        yield
    transfer.pretrained.cache_clear()


def test_an_episode_holds_new_classes_and_no_query_in_its_support(experiment):
    parts = transfer.transfer(experiment.task, "classes")
    one = claim.episode(parts, parts.test, 3, 7)
    assert torch.bincount(one.support.y_n).tolist() == [3] * 5
    assert set(one.queries.y_n.tolist()) == set(range(5))
    assert len(one.queries) == len(parts.test)
    seen = {image.numpy().tobytes() for image in one.support.x_nchw}
    assert not seen & {image.numpy().tobytes() for image in parts.source.x_nchw}
    assert seen <= {image.numpy().tobytes() for image in parts.pool.x_nchw}
    other = claim.episode(parts, parts.test, 3, 8)
    assert not torch.equal(one.support.x_nchw, other.support.x_nchw)


def test_labels_count_within_the_episode_and_ways_are_limited(experiment, monkeypatch):
    monkeypatch.setattr(claim, "WAYS", 2)
    parts = transfer.transfer(experiment.task, "classes")
    one = claim.episode(parts, parts.validation, 4, 1)
    assert torch.bincount(one.support.y_n).tolist() == [4, 4]
    for label in (0, 1):
        support = one.support.x_nchw[one.support.y_n == label][0]
        original = parts.pool.y_n[(parts.pool.x_nchw == support).flatten(1).all(dim=1)][0]
        assert int((parts.validation.y_n == original).sum()) == int((one.queries.y_n == label).sum())


@pytest.fixture
def settings(experiment, monkeypatch):
    monkeypatch.setattr(transfer, "EPOCHS", 4)
    base = {"network": dict(experiment.mlp(2, width=16)), "pretraining_rate": 0.125, "shots": 5, "episodes": 3}
    return {"task": experiment.drawn(1), **base, "rate": 0.05, "seed": 1, "report": "test"}


def test_episodes_learn_and_a_diverging_one_is_wrong(settings):
    learned = claim.episodes(**settings, arm="group")
    still = claim.episodes(**{**settings, "rate": 0.0}, arm="group")
    assert learned["error"] < 0.6 < still["error"]
    assert set(learned["validation"]) == {"error", "loss"}
    assert claim.episodes(**{**settings, "rate": 1e20}, arm="frozen")["error"] == 1.0


def test_only_the_frozen_arm_keeps_the_pretrained_statistics(settings):
    frozen, usual = (claim._start({**settings, "arm": arm}, 5) for arm in ("frozen", "batch"))
    assert frozen.hidden[1].statistics == gb.statistics.Running()
    assert usual.hidden[1].statistics == gb.statistics.Batch()
    assert torch.equal(frozen.classifier.weight, usual.classifier.weight)  # one head for all arms of an episode


@pytest.mark.parametrize(
    ("batch", "group", "verdict"),
    [
        (50.0, 30.0, "supported"),
        (30.0, 50.0, "contradicted"),
        (30.0, 30.0, "equivalent"),
        (32.2, 30.0, "inconclusive"),
        (79.0, 75.0, "no room here"),
    ],
)
def test_the_verdict_on_made_up_errors(experiment, monkeypatch, batch, group, verdict):
    monkeypatch.setattr(claim, "pretraining_rates", lambda experiment, every, norms: FakeRates())
    errors = {"batch": batch, "group": group, "frozen": 40.0, "layer": 40.0}
    plant(monkeypatch, claim, lambda arm: chosen(errors[arm[1]]))
    outcome = claim.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert len(outcome.regimes) == 2


class FakeRates(dict):
    def __missing__(self, key):
        return 0.1


def test_shots_that_differ_are_mixed(experiment, monkeypatch):
    monkeypatch.setattr(claim, "pretraining_rates", lambda experiment, every, norms: FakeRates())
    plant(monkeypatch, claim, lambda arm: chosen(60.0 if "1 image " in arm[0] and arm[1] == "batch" else 30.0))
    outcome = claim.measure(experiment)
    assert outcome.verdict == "mixed"
    assert list(outcome.regimes.values()) == ["supported", "equivalent"]
