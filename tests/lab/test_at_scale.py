"""Studies at scale: all of the data, the networks that people train on them, and what a budget leaves out."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from gammabeta.lab import procedure
from gammabeta.lab.claim_sets import AT_SCALE
from gammabeta.lab.claims import CLAIMS
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images import comparison, together
from gammabeta.lab.images.augmentation import PADDING, crop_and_flip
from gammabeta.lab.images.networks import build, describe
from gammabeta.lab.images.task import Split, Task
from gammabeta.lab.images.training import Training, fit, step_time, train
from gammabeta.lab.sequences import training as sequences
from gammabeta.lab.sources import load, source, whole
from gammabeta.lab.study import StudyError, _Running, study
from gammabeta.lab.text import training as text
from gammabeta.lab.trials.store import Store

RESNET20 = {"kind": "resnet20", "init": "matched"}


def images(shape=(3, 32, 32), classes=10):
    split = Split(torch.randn(8, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(8) % classes)
    return Task("made up", "", classes, split, split, split, redraw=lambda number: images(shape), keeps_test=True)


# --- ResNet-20 ---


def test_resnet_20_has_the_published_layers_and_parameters():
    """He et al. 2015, table 6: 20 layers with 0.27 million parameters."""
    model = build(images(), RESNET20, "batch", 1)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 20
    weights = sum(layer.weight.numel() for layer in layers)
    norms = sum(2 * module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert weights == 3 * 16 * 9 + 16 * 16 * 54 + 16 * 32 * 9 + 32 * 32 * 45 + 32 * 64 * 9 + 64 * 64 * 45 + 640
    assert sum(parameter.numel() for parameter in model.parameters()) == weights + norms + 10
    assert describe(RESNET20) == "ResNet-20"


def test_its_skip_connections_halve_the_image_and_add_channels_of_zeros():
    model = build(images(), RESNET20, "none", 1)
    block = model.blocks[3]
    with torch.no_grad():
        block.conv2.weight.zero_()
    x = torch.rand(2, 16, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "rms", "none", "ghost:4"])
def test_every_norm_trains_in_it(norm):
    task = images()
    at = {"network": RESNET20, "norm": norm, "rate": 0.001 if norm == "none" else 0.05, "batch_size": 8, "seed": 1}
    before, after = (fit(task, task.train, Training(**at, steps=steps)).model.train() for steps in (1, 15))
    with torch.no_grad():
        losses = [float(nn.functional.cross_entropy(m(task.train.x_nchw), task.train.y_n)) for m in (before, after)]
    assert losses[1] < 0.9 * losses[0]


# --- augmentation ---


def test_a_crop_is_a_shifted_part_of_the_padded_image_flipped_half_of_the_time():
    x = torch.arange(1.0, 1 + 400 * 3 * 5 * 6).reshape(400, 3, 5, 6)
    y = crop_and_flip(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    padded = nn.functional.pad(x, (PADDING,) * 4)
    flips, shifts = 0, set()
    for before, after in zip(padded, y, strict=True):
        found = [
            (top, left, flipped)
            for top in range(2 * PADDING + 1)
            for left in range(2 * PADDING + 1)
            for flipped in (False, True)
            if torch.equal(after.flip(2) if flipped else after, before[:, top : top + 5, left : left + 6])
        ]
        assert found  # every image is some crop of itself, all channels together
        if len(found) == 1:
            shifts.add(found[0][:2])
            flips += found[0][2]
    assert 0.4 < flips / 400 < 0.6
    assert len(shifts) > 60  # of 81


def test_arms_of_one_seed_see_the_same_crops_and_validation_sees_none(monkeypatch):
    seen = {}

    class Spy(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm, self.linear = norm, nn.Linear(3 * 32 * 32, 10)

        def forward(self, x):
            seen.setdefault((self.norm, self.training), []).append(x.clone())
            return self.linear(x.flatten(1))

    task = images()
    monkeypatch.setattr("gammabeta.lab.images.training.build", lambda data, network, norm, seed: Spy(norm))
    monkeypatch.setattr("gammabeta.lab.images.training.load", lambda source: task)
    for norm in ("batch", "group"):
        train(
            task={}, network=RESNET20, norm=norm, rate=0.01, batch_size=4, steps=4, seed=3, augment=True, report="test"
        )
    for one, other in zip(seen["batch", True], seen["group", True], strict=True):
        assert torch.equal(one, other)
    pictures = {tuple(x.flatten().tolist()) for x in task.train.x_nchw}
    changed = [tuple(x.flatten().tolist()) in pictures for batch in seen["batch", True] for x in batch]
    assert sum(changed) < len(changed) / 2
    assert all(tuple(x.flatten().tolist()) in pictures for batch in seen["batch", False] for x in batch)


def test_augmented_runs_are_not_joined():
    settings = {"network": {"kind": "resnet", "init": "matched"}}
    assert together.joinable(settings)
    assert not together.joinable({**settings, "augment": True})
    assert not together.joinable({"network": RESNET20})


# --- the study ---


def cifar10(path, n):
    rng = np.random.default_rng(0)
    parts = {f"x_{part}": rng.integers(0, 256, (m, 32, 32, 3), np.uint8) for part, m in (("train", n), ("test", 60))}
    np.savez(path, **parts, y_train=np.arange(n) % 10, y_test=np.arange(60) % 10)
    return path


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return cifar10(tmp_path_factory.mktemp("cifar") / "small.npz", 2600)


def test_at_scale_takes_all_of_the_data(cifar):
    found = source(f"cifar10:{cifar}")
    assert len(load(found).train) == 2000
    assert len(load(whole(found)).train) == 2080  # a fifth is for tuning
    assert whole(found) == source(f"cifar10:{cifar}", "all")
    assert whole(source("text")) == source("text")


def test_at_scale_a_folder_is_whole_and_has_the_fingerprint_of_all_its_images(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(80):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / label / f"{number}.png")
    part, all_of_it = source(f"folder:{tmp_path}", 60), whole(source(f"folder:{tmp_path}"))
    assert all_of_it == source(f"folder:{tmp_path}", "all")
    assert all_of_it["fingerprint"] != part["fingerprint"]
    sizes = [sum(len(getattr(load(s), of)) for of in ("train", "validation", "test")) for s in (part, all_of_it)]
    assert sizes[0] < sizes[1] == 160


def test_at_scale_cifar_10_has_resnet_20_with_crops_and_other_images_the_small_resnet(cifar, tmp_path):
    store = Store(tmp_path, fresh=True)
    at_scale = Experiment({"images": source(f"cifar10:{cifar}")}, store, at_scale=True)
    assert comparison.networks(at_scale) == [RESNET20]
    assert comparison._arm(RESNET20, "batch", 128, 10)["augment"]
    of_digits = Experiment({"images": source("digits")}, store, at_scale=True)
    assert comparison.networks(of_digits) == [of_digits.convolutional]
    assert "augment" not in comparison._arm(of_digits.convolutional, "batch", 128, 10)


def test_at_scale_texts_and_sequences_have_the_lengths_of_whole_studies(tmp_path):
    sources = {"text": source("text"), "sequences": source("strokes")}
    store = Store(tmp_path, fresh=True)
    small, full, at_scale = (Experiment(sources, store, **more) for more in ({}, {"quick": False}, {"at_scale": True}))
    assert text.shape_of(at_scale) == text.shape_of(full) != text.shape_of(small)
    assert text.steps_of(at_scale) == text.steps_of(full) != text.steps_of(small)
    assert sequences.steps_of(at_scale) == sequences.steps_of(full) != sequences.steps_of(small)
    assert text.shorter_of(at_scale) == {"steps": text.steps_of(full) // 4}
    assert text.seeds_of(at_scale) == text.seeds_of(small)


def test_its_claims_are_at_most_eight_that_exist():
    assert len(set(AT_SCALE)) == len(AT_SCALE) <= 8
    assert set(AT_SCALE) <= {claim.name for claim in CLAIMS}


def test_claims_about_other_data_are_left_out(tmp_path, monkeypatch):
    text = tmp_path / "words.txt"
    text.write_text("to be or not to be, that is the question\n" * 400)
    measured = []
    monkeypatch.setattr(_Running, "decide", lambda self, number, claim: measured.append(claim.name))
    monkeypatch.setattr(_Running, "compare", lambda *_: None)
    given = {"data": f"text:{text}", "jobs": 1, "console": Console(file=io.StringIO())}
    study(at_scale=True, out=tmp_path / "all", **given)
    assert measured == ["layernorm_in_transformers"]
    study(["axes", "sequences"], at_scale=True, out=tmp_path / "named", **given)
    assert measured[1:] == ["axes", "sequences"]


def test_built_in_data_are_not_at_scale(tmp_path):
    with pytest.raises(StudyError, match=r"--at-scale: expected --data, got none: .* --quick is for them"):
        study(at_scale=True, out=tmp_path, console=Console(file=io.StringIO()))


@pytest.mark.parametrize(("step", "timed"), [(0.01, 60), (0.5, 20), (3.0, 15)])
def test_steps_are_timed_for_ten_seconds_and_never_fewer_than_fifteen(step, timed, monkeypatch):
    task, clock = images((1, 8, 8), 2), itertools.count()
    monkeypatch.setattr("gammabeta.lab.images.training.load", lambda source: task)
    monkeypatch.setattr("gammabeta.lab.images.training.time.perf_counter", lambda: step * next(clock))
    network = {"kind": "mlp", "depth": 1, "width": 4, "activation": "relu", "init": "matched"}
    found = step_time(task={}, network=network, norm="batch", batch_size=4, seed=1)
    assert found == {"steps": timed, "timing": {"seconds_per_step": pytest.approx(step)}}


@pytest.mark.slow
def test_a_study_at_scale_says_what_it_left_out_and_with_which_command_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "EPOCHS", 0.1)
    monkeypatch.setattr(comparison, "LIMIT_QUICK", 0.1)
    monkeypatch.setattr(procedure, "COARSE_REPLICATES", 1)
    monkeypatch.setattr("gammabeta.lab.images.training.FEWEST_STEPS", 1)
    monkeypatch.setattr("gammabeta.lab.images.training.ENOUGH_SECONDS", 0)
    monkeypatch.setattr(procedure, "MOST_MOVES", 0)  # one step tells no rate from another: the search would not end
    monkeypatch.setattr(comparison, "norms", lambda *_, **__: {"batch": "BatchNorm", "none": "no normalization"})
    found = study(
        at_scale=True, compare_only=True, data=f"cifar10:{cifar10(tmp_path / 'small.npz', 400)}", seeds=2, jobs=1,
        out=tmp_path / "out",
        console=Console(file=io.StringIO()),
    )  # fmt: skip
    (said,) = found["recommendations"]
    assert (said["network"], said["batch_size"]) == ("ResNet-20", 128)
    assert "--at-scale" in found["command"]
    assert "--quick" not in found["command"]
    assert found["at_scale"]
    assert found["tasks"][0]["samples"] == {"train": 320, "validation": 80, "test": 60}
