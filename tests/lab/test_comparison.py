"""Norms side by side: the arms of each kind of data, their costs, and the study that compares them."""

import io
import json
import re

import pytest
import torch
from rich.console import Console
from torch import nn

from gammabeta.lab import procedure
from gammabeta.lab.comparison import ERROR, LOSS, Compared, kept_bytes, seconds_per_step, side_by_side
from gammabeta.lab.images import comparison as images
from gammabeta.lab.interval import Precision
from gammabeta.lab.norms import norm
from gammabeta.lab.sequences import comparison as sequences
from gammabeta.lab.sequences import training as sequence_training
from gammabeta.lab.sequences.networks import SequenceNorm
from gammabeta.lab.sources import source
from gammabeta.lab.study import StudyError, study
from gammabeta.lab.text import comparison as text
from gammabeta.lab.text import training as text_training
from gammabeta.lab.trials.workers import TrialError


def compared(**settings):
    printed = io.StringIO()
    results = study(compare_only=True, quick=True, jobs=1, console=Console(file=printed, width=400), **settings)
    return results, printed.getvalue()


@pytest.fixture
def short(monkeypatch):
    """Train for only a few steps."""
    monkeypatch.setattr(images, "EPOCHS", 0.2)
    monkeypatch.setattr(images, "LIMIT_QUICK", 0.2)
    monkeypatch.setattr(procedure, "COARSE_REPLICATES", 1)
    monkeypatch.setattr(sequence_training, "steps_of", lambda experiment: 6)
    monkeypatch.setattr(sequence_training, "POPULATION", 64)
    monkeypatch.setattr(text_training, "steps_of", lambda experiment: 8)


# --- costs ---


def test_kept_bytes_are_those_of_the_activations_and_none_twice():
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Sigmoid())
    x = torch.randn(16, 8, requires_grad=True)  # so that the weight is kept too, and must not be counted
    # x for the weight's gradient and the sigmoid's output; the sum keeps nothing, the weight is a parameter
    assert kept_bytes(model, lambda: model(x).sum()).as_it_is == 4 * (16 * 8 + 16 * 4)
    # the product keeps both of its factors, and they are one tensor
    assert kept_bytes(model, lambda: (model(x) * model(x)).sum()).as_it_is == 4 * (16 * 8 + 2 * 16 * 4)


def test_memory_on_images_grows_with_the_batch_and_is_less_without_a_norm():
    settings = {"task": source("digits"), "network": {"kind": "resnet", "init": "matched"}}
    of = [images.saved_bytes(**settings, norm="batch", batch_size=size)["bytes"] for size in (8, 16)]
    assert 1.8 < of[1] / of[0] < 2.1
    assert images.saved_bytes(**settings, norm="none", batch_size=16)["bytes"] < of[1]
    both = images.saved_bytes(**settings, norm="batch", batch_size=16)
    assert 0.4 < both["recomputed"] / both["bytes"] < 0.8


def test_memory_on_sequences_and_text_is_least_without_a_norm():
    found = sequences.costs(
        task=source("strokes"), network="GRU", norms=["layer", "none", "masked:4"], batch_size=8, seed=1, steps=4
    )
    assert found["bytes"]["none"] < min(found["bytes"]["layer"], found["bytes"]["masked:4"])
    assert found["timing"].keys() == {"layer", "none", "masked:4"}
    assert all(seconds > 0 for seconds in found["timing"].values())
    shape = {"width": 16, "layers": 2, "context": 8, "batch": 4}
    of = {arm: text.saved_bytes(task=source("text"), norm=arm, **shape)["bytes"] for arm in ("layer", "none")}
    assert of["none"] < of["layer"]
    assert found["recomputed"]["none"] == found["bytes"]["none"]
    assert found["recomputed"]["layer"] <= found["bytes"]["layer"]


def test_every_model_takes_a_step_on_every_batch_in_turns():
    calls = []
    models = {name: nn.Linear(2, 1) for name in ("a", "b")}
    before = {name: model.weight.clone() for name, model in models.items()}

    def loss(model, batch):
        calls.append((next(name for name, one in models.items() if one is model), batch))
        return model(torch.ones(1, 2)).sum()

    seconds = seconds_per_step(models, loss, range(5))
    assert calls == [(name, batch) for batch in range(5) for name in ("a", "b")]
    assert all(not torch.equal(before[name], model.weight) for name, model in models.items())
    assert seconds.keys() == {"a", "b"}


def test_arms_are_paired_by_seed_against_the_first():
    layer = Compared("layer", "LayerNorm", 2**-8, (1.0, 2.0, 3.0), (2.0, 4.0, 9.0), 10)
    rms = Compared("rms", "RMSNorm", 2**-7, (0.5, 1.49, 2.51), (4.0,), 0)
    usual, other = side_by_side([layer, rms], LOSS)
    assert usual == layer
    assert (usual.value, usual.seconds) == (2.0, 4.0)
    # half a nat lower on each seed: the values vary, their differences hardly do
    assert other.gain.value == pytest.approx(0.5)
    assert other.gain.high - other.gain.low < 0.1
    assert other.gain.verdict == "supported"
    assert other.saved == 1  # ratios to it stay finite
    assert (LOSS.margin, ERROR.margin) == ((-0.03, 0.03), (-1.0, 1.0))


def test_gains_on_few_images_are_no_finer_than_one_image_and_what_recalibration_gains_is_paired_too():
    batch = Compared("batch", "BatchNorm", 0.5, (5.0, 6.0, 7.0), (1.0,), 10, (2.0, 3.0, 4.0))
    group = Compared("group", "GroupNorm", 0.5, (4.0, 5.0, 6.0), (1.0,), 10)
    usual, other = side_by_side([batch, group], ERROR, Precision(samples=50))
    assert (other.gain.low, other.gain.value, other.gain.high) == (-1.0, 1.0, 3.0)
    assert (usual.recalibration.value, usual.recalibration.low) == (3.0, 1.0)
    assert other.recalibration is None


# --- several devices on one ---


def test_batchnorm_of_each_device_is_ghost_batchnorm_of_the_whole():
    torch.manual_seed(0)
    x = torch.randn(12, 3)
    whole = norm("ghost:4", 3, 0).train()(x)
    each = torch.cat([norm("batch", 3, 0).train()(part) for part in x.split(4)])
    torch.testing.assert_close(whole, each)
    assert list(images.norms(4, 3, flat=True))[:2] == ["ghost:4", "batch"]
    assert next(iter(images.norms(4, 1, flat=False))) == "batch"


def test_masked_batchnorm_of_each_device_is_masked_ghost_batchnorm_of_the_whole():
    torch.manual_seed(0)
    x, mask = torch.randn(6, 5, 3), torch.rand(6, 5) > 0.3
    whole, devices = SequenceNorm("masked:2", 3), [SequenceNorm("masked", 3) for _ in range(3)]
    each = torch.cat([devices[i](x[2 * i : 2 * i + 2], mask[2 * i : 2 * i + 2]) for i in range(3)])
    torch.testing.assert_close(whole(x, mask), each)
    # Evaluation uses the first device's moving averages.
    for name, buffer in devices[0].norm.named_buffers():
        torch.testing.assert_close(whole.norm.get_buffer(name), buffer)
    torch.testing.assert_close(whole.eval()(x, mask), devices[0].eval()(x, mask))
    # At a step of a recurrence where a device has no sequence left, it does not count.
    ended = torch.tensor([True, True, False, False, True, True])
    assert torch.isfinite(SequenceNorm("masked:2", 3)(x[:, 0], ended)).all()
    assert list(sequences.norms(2, 3)) == ["layer", "rms", "group", "masked:2", "masked", "none"]
    assert list(text.norms(2, 3)) == ["layer", "rms", "padded:2", "padded", "none"]
    assert "padded" in sequences.norms(2, 1)
    assert list(sequences.norms(1, 1)) == ["layer", "rms", "group", "none"]
    assert list(sequences.norms(1, 3, quick=True)) == ["layer", "masked", "none"]


# --- the study that compares ---


SHRINKS = """
from torch import nn

def build(input_shape, classes):
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, classes)
    )
"""


def test_on_images_it_recommends_and_leaves_out_what_a_model_cannot_have(tmp_path, short):
    """Images of 8 × 8 become 1 × 1, where InstanceNorm has one value per statistic."""
    (tmp_path / "shrinks.py").write_text(SHRINKS)
    out, model = tmp_path / "out", f"{tmp_path / 'shrinks.py'}:build"
    results, printed = compared(out=out, data="digits", model=model, batch_size=16, devices=2, seeds=2)
    assert results["claims"] == []
    (said,) = results["recommendations"]
    assert (said["kind"], said["batch_size"], said["devices"]) == ("images", 16, 2)
    names = {row[0] for row in said["table"]["rows"]}
    assert {"BatchNorm of each device's own batch", "BatchNorm synced over the devices", "GroupNorm"} <= names
    assert "InstanceNorm" not in names
    # as deployed first, and what recalibration would give beside it
    moving, exact = (said["table"]["columns"].index(name) for name in ("test error, %", "with exact statistics"))
    assert all(
        row[moving] == row[exact] for row in said["table"]["rows"] if row[0] in ("GroupNorm", "no normalization")
    )
    assert any(row[moving] != row[exact] for row in said["table"]["rows"])
    words = [line.split()[0] for line in printed.splitlines() if line[:14].strip()]
    assert [word for word in words if word != "running"] == ["data", "recommended"]
    assert results["command"] == (
        f"gammabeta study --data digits --model {model} --quick --out {out} --jobs 1 --seeds 2 --batch-size 16 "
        "--devices 2 --compare"
    )


def test_on_sequences_each_network_has_its_own_and_the_claim_trains_nothing_again(tmp_path, short):
    results, printed = compared(out=tmp_path, data="strokes", seeds=2)
    gru, transformer = results["recommendations"]
    assert (gru["network"], transformer["network"]) == ("GRU", "Transformer, pre-norm")
    assert printed.count("recommended") == 2
    assert gru["picture"]["title"] == "Test error of LayerNorm minus that of each norm"
    assert "with exact statistics" in gru["table"]["columns"]
    assert {row[0] for row in gru["table"]["rows"]} == set(sequences.norms(32, 1, quick=True).values())
    of_layernorm = next(row for row in gru["table"]["rows"] if row[0] == "LayerNorm")
    value = dict(zip(gru["table"]["columns"], of_layernorm, strict=True))
    assert (value["time per step"], value["memory for the backward pass"]) == (1.0, 1.0)
    assert 0 < value["memory after gb.recompute"] < 1
    moving, exact = value["test error, %"], value["with exact statistics"]
    assert moving == exact  # LayerNorm has no moving averages
    trained = keys(tmp_path, "lab.sequences.training:classified")
    study(["sequences"], quick=True, jobs=1, out=tmp_path, data="strokes", seeds=2, console=Console(file=io.StringIO()))
    assert keys(tmp_path, "lab.sequences.training:classified") == trained


def keys(folder, run):
    """Return the lines of one function's finished trials."""
    return [line for line in (folder / "trials.jsonl").read_text().splitlines() if run in line]


def test_on_sequences_over_devices_costs_are_those_of_one(tmp_path, short):
    results, printed = compared(out=tmp_path, data="strokes", seeds=2, batch_size=4, devices=2)
    for said in results["recommendations"]:
        assert {row[0] for row in said["table"]["rows"]} == set(sequences.norms(4, 2, quick=True).values())
        costs = {row[0]: row for row in said["table"]["rows"]}
        time, memory = (
            said["table"]["columns"].index(name) for name in ("time per step", "memory for the backward pass")
        )
        own, synced = (
            costs[name]
            for name in ("masked BatchNorm of each device's own batch", "masked BatchNorm synced over the devices")
        )
        assert synced[time] > own[time]  # by the exchange, which is modelled
        assert synced[memory] == own[memory]
        assert said["communication"].startswith("synchronizing adds ")
    assert printed.count("with batches of 4 on each of 2 devices") == 2
    trained = [json.loads(line)["settings"] for line in keys(tmp_path, "lab.sequences.training:classified")]
    assert {settings["batch_size"] for settings in trained} == {8}
    timed = [json.loads(line)["settings"] for line in keys(tmp_path, "lab.sequences.comparison:costs")]
    assert {settings["batch_size"] for settings in timed} == {4}


def test_a_model_without_data_is_compared_on_images_alone(tmp_path, short):
    (tmp_path / "shrinks.py").write_text(SHRINKS)
    results, _ = compared(out=tmp_path / "out", model=f"{tmp_path / 'shrinks.py'}:build", seeds=2)
    assert [said["kind"] for said in results["recommendations"]] == ["images"]


def test_a_comparison_that_fails_is_told_and_the_others_go_on(tmp_path, short, monkeypatch):
    def fails(*_):
        raise TrialError("it died three times")

    monkeypatch.setattr(images, "compare", fails)
    monkeypatch.setattr(text, "compare", fails)
    results, printed = compared(out=tmp_path, seeds=2)
    headlines = [said["headline"] for said in results["recommendations"]]
    assert [headline.split(" with ")[0] for headline in headlines[:2]] == [
        f"No recommendation for {network} on strokes" for network in ("GRU", "Transformer, pre-norm")
    ]
    assert headlines[2:] == [
        f"No recommendation on {kind}: the comparison of the norms failed." for kind in ("images", "text")
    ]
    assert results["failed"] == [f"comparison on {kind}: it died three times" for kind in ("images", "text")]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert printed.count("recommended  No recommendation for") == 2


def test_on_text_over_devices_batchnorm_is_synced_or_each_one_s_own(tmp_path, short):
    results, _ = compared(out=tmp_path, data="text", seeds=2, batch_size=4, devices=2)
    (said,) = results["recommendations"]
    assert (said["kind"], said["devices"]) == ("text", 2)
    assert {row[0] for row in said["table"]["rows"]} == set(text.norms(4, 2).values())
    for run, batch in (("language_model", 8), ("step_times", 4), ("lab.text.comparison:saved_bytes", 4)):
        assert {json.loads(line)["settings"]["batch"] for line in keys(tmp_path, run)} == {batch}


def test_a_batch_larger_than_the_images_is_refused(tmp_path):
    with pytest.raises(StudyError, match=re.escape(
        "--batch-size 512 on 4 devices: expected half of the 997 training images or less, got 2048."
    )):  # fmt: skip
        compared(out=tmp_path, batch_size=512, devices=4)


@pytest.mark.parametrize(
    ("given", "what"),
    [({"batch_size": 0}, "batch size of 1 or more, got 0"), ({"devices": -1}, "devices of 1 or more, got -1")],
)
def test_no_images_or_devices_are_refused(tmp_path, given, what):
    with pytest.raises(StudyError, match=what):
        compared(out=tmp_path, **given)
    assert not list(tmp_path.iterdir())
