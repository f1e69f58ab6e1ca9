"""Online streams: no image comes twice, answers come before the step, and the claim's branches."""

import pytest
import torch
from tests.lab.claims.made_up_rates import chosen, plant
from tests.threads import one_thread

from gammabeta.lab.claims import online_stream as claim
from gammabeta.lab.images import online_together
from gammabeta.lab.images.online_together import RUN, stream_order
from gammabeta.lab.images.task import Split


@pytest.fixture(autouse=True)
def as_a_trial():
    with one_thread():
        yield


@pytest.mark.parametrize("order", ["shuffled", "runs"])
def test_no_image_comes_twice(experiment, order):
    train = experiment.task.train
    drawn = stream_order(train, 8, order, 3)
    assert drawn.shape == (len(train) // 8, 8)
    assert len(drawn.unique()) == drawn.numel()
    changes = (train.y_n[drawn.flatten()].diff() != 0).float().mean()
    assert (changes > 0.8) if order == "shuffled" else (changes < 1.5 / RUN)


def settings(experiment, **more):
    base = {"network": dict(experiment.mlp(2, width=16)), "norm": "group", "batch_size": 4, "order": "shuffled"}
    return {"task": experiment.drawn(1), **base, "rate": 0.01, "seed": 1, "report": "test", **more}


def test_answers_come_before_the_step_and_the_network_goes_on_learning(experiment):
    """With a rate of 0 the answers are those of the untrained network; with another they get better over the stream."""
    still, learning = (claim.streamed(**settings(experiment, rate=rate)) for rate in (0.0, 0.01))
    assert still["early_error"] > 0.75
    assert still["error"] == pytest.approx(still["early_error"], abs=0.1)
    assert learning["error"] < learning["early_error"] < still["early_error"]
    assert learning["validation"]["error"] < 0.5
    validated = claim.streamed(**settings(experiment, report="validation"))
    assert validated["error"] == learning["validation"]["error"]
    assert validated["validation"] is None


def test_the_first_answer_knows_nothing_of_its_batch():
    """Each batch holds one image four times, of one class per batch: only answers after the step could be right."""
    model = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(model.weight)
    model.bias.data = torch.tensor([1.0, 0.0])
    split = Split(torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4), torch.tensor([1] * 4 + [0] * 4))
    learners = online_together._Learners(model, [10.0])
    orders = [torch.arange(8).reshape(2, 4)]
    # wrong at first (class 0 has the larger bias); then the step towards class 1 makes the second batch wrong too
    assert learners.learn([split], orders) == [1.0]


def test_a_network_that_diverges_is_wrong(experiment):
    lost = claim.streamed(**settings(experiment, norm="none", rate=1e20))
    assert lost["error"] == lost["validation"]["error"] == 1.0


@pytest.mark.parametrize(
    ("batch", "group", "verdict"),
    [
        (30.0, 10.0, "supported"),
        (10.0, 30.0, "contradicted"),
        (10.0, 10.0, "equivalent"),
        (12.2, 10.0, "inconclusive"),
        (90.0, 60.0, "no room here"),
    ],
)
def test_the_verdict_on_made_up_errors(experiment, monkeypatch, batch, group, verdict):
    errors = {"batch": batch, "group": group}
    plant(monkeypatch, claim, lambda arm: chosen(errors[arm[1]], early_error=0.5))
    outcome = claim.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert len(outcome.regimes) == 3


def test_streams_that_differ_are_mixed(experiment, monkeypatch):
    plant(
        monkeypatch,
        claim,
        lambda arm: chosen(
            40.0 if arm == ("MLP 2 layers relu, batches of 8, runs", "batch") else 10.0, early_error=0.5
        ),
    )
    outcome = claim.measure(experiment)
    assert outcome.verdict == "mixed"
    assert list(outcome.regimes.values()) == ["equivalent", "equivalent", "supported"]


def test_a_tiny_study_runs(experiment, monkeypatch):
    monkeypatch.setattr(
        claim, "regimes", lambda experiment: [claim.Regime(experiment.mlp(1, width=16), 32, "shuffled")]
    )
    monkeypatch.setattr(claim, "COARSE", (-5,))
    experiment.seed_count = 2
    outcome = claim.measure(experiment)
    assert outcome.room.holds, outcome.room.control
    assert len(outcome.tables[0].rows) == 2
