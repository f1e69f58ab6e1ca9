"""The data and models that a user may bring, and the full text of every error that can be made with them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.training import batches, crossing, exact_statistics, train
from gammabeta.lab.images.user_network import user_network
from gammabeta.lab.norms import NORMS, groups, norm
from gammabeta.lab.sources import load, source
from gammabeta.lab.task import TaskError
from gammabeta.lab.user_model import load_builder

DIGITS = source("digits")
MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist.npz"


def exactly(text):
    return f"^{re.escape(text)}$"


def arrays(**changed):
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.integers(0, 256, (60, 8, 8), dtype=np.uint8),
        "y_train": np.arange(60) % 3,
        "x_test": rng.integers(0, 256, (30, 8, 8), dtype=np.uint8),
        "y_test": np.arange(30) % 3,
    }
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def saved(folder, **changed):
    np.savez(folder / "own.npz", **arrays(**changed))
    return load(source(f"mnist:{folder / 'own.npz'}"))


def test_digits_are_split_without_overlap_and_standardized_by_the_training_part():
    task = load(DIGITS)
    assert (task.shape, task.classes) == ((1, 8, 8), 10)
    parts = (task.train, task.validation, task.test)
    assert [len(part) for part in parts] == [997, 400, 400]
    images = torch.cat([part.x_nchw.flatten(1) for part in parts])
    assert len(images.unique(dim=0)) == 1797
    assert abs(float(task.train.x_nchw.mean())) < 1e-5
    assert abs(float(task.train.x_nchw.std()) - 1) < 1e-3
    for part in parts:
        assert torch.bincount(part.y_n).float().div(len(part)).sub(0.1).abs().max() < 0.012


def test_an_npz_goes_in(tmp_path):
    task = saved(tmp_path)
    assert (task.shape, task.classes) == ((1, 8, 8), 3)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [48, 12, 30]
    assert sorted(torch.bincount(task.train.y_n).tolist()) == [16, 16, 16]


def test_colour_images_go_in_with_channels_first(tmp_path):
    rng = np.random.default_rng(0)
    task = saved(tmp_path, x_train=rng.random((60, 8, 9, 3)), x_test=rng.random((30, 8, 9, 3)))
    assert task.shape == (3, 8, 9)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_their_channels_first_are_the_same_images(tmp_path, channels):
    rng = np.random.default_rng(0)
    x = {"x_train": rng.random((60, 8, 9, channels)), "x_test": rng.random((30, 8, 9, channels))}
    last = saved(tmp_path, **x)
    first = saved(tmp_path, **{name: np.moveaxis(array, 3, 1) for name, array in x.items()})
    assert first.shape == last.shape == (channels, 8, 9)
    assert torch.equal(first.train.x_nchw, last.train.x_nchw)
    assert torch.equal(first.test.x_nchw, last.test.x_nchw)


def test_an_npz_has_the_file_s_name(tmp_path):
    np.savez(tmp_path / "cells.npz", **arrays())
    task = load(source(f"npz:{tmp_path / 'cells.npz'}"))
    assert (task.name, task.shape, task.classes) == ("cells", (1, 8, 8), 3)
    assert task.description.startswith("cells.npz: 48 training and 12 tuning images of 60")


@pytest.mark.skipif(not MNIST.exists(), reason="mnist.npz does not lie beside the project")
def test_mnist_itself_goes_in():
    task = load(source(f"mnist:{MNIST}"))
    assert (task.shape, task.classes, len(task.train)) == ((1, 28, 28), 10, 2000)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"x_test": None},
            "expected the arrays x_train, y_train, x_test, y_test, found x_train, y_train, y_test: "
            "write them under these names, with numpy.savez.",
        ),
        (
            {"x_train": np.zeros((60, 64))},
            "expected x_train of shape (n, height, width), (n, height, width, 1 or 3) or (n, 1 or 3, height, width), "
            "got (60, 64): reshape it.",
        ),
        (
            {"x_train": np.zeros((60, 2, 8, 8))},
            "expected x_train of shape (n, height, width), (n, height, width, 1 or 3) or (n, 1 or 3, height, width), "
            "got (60, 2, 8, 8): reshape it.",
        ),
        (
            {"x_train": np.full((60, 8, 8), "a")},
            "expected x_train of a real number type, got <U1: convert it, as x.astype(np.float32).",
        ),
        (
            {"x_train": np.zeros((60, 4, 4))},
            "expected images of 8 × 8 pixels or more in x_train, got (60, 4, 4): enlarge or pad them.",
        ),
        (
            {"x_test": np.zeros((30, 8, 9))},
            "expected images of one shape, got (8, 8) in x_train and (8, 9) in x_test: give both the same.",
        ),
        (
            {"y_train": np.zeros((60, 10), int)},
            "expected y_train of shape (n,) with integer labels, got (60, 10) of int64: give each of the "
            "images the number of its class.",
        ),
        (
            {"y_test": np.zeros(30)},
            "expected y_test of shape (n,) with integer labels, got (30,) of float64: give each of the "
            "images the number of its class.",
        ),
        (
            {"y_train": np.arange(50) % 3},
            "expected as many labels as images, got 60 in x_train, 50 in y_train: remove what has no counterpart.",
        ),
        (
            {"x_train": np.full((60, 8, 8), np.nan)},
            "expected finite pixels in x_train, got NaN or infinity: replace them, or leave these images out.",
        ),
        (
            {"y_train": np.arange(60) % 3 + 1},
            "expected labels 0 to k − 1 in y_train, k at least 2, each present, got 1, 2, 3: "
            "renumber the classes, as np.unique(y, return_inverse=True)[1] does.",
        ),
        (
            {"y_test": np.arange(30) % 4},
            "expected the labels of y_test among those of y_train, got 3 too: leave out the test "
            "images of these classes.",
        ),
        (
            {"y_train": np.array([0] * 55 + [1] * 5)},
            "expected the labels of y_test among those of y_train, got 2 too: leave out the test "
            "images of these classes.",
        ),
        (
            {"y_train": np.array([0] * 52 + [1] * 5 + [2] * 3)},
            "expected 10 training images of each class or more, got 3 of one: bring more, or leave the class out.",
        ),
        ({"x_train": np.ones((60, 8, 8))}, None),
    ],
)
def test_an_npz_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, changed, text):
    whole = (
        f"own.npz: {text}"
        if text
        else "mnist: every training image has the same pixels in some channel: nothing can be learned."
    )
    with pytest.raises(TaskError, match=exactly(whole)):
        saved(tmp_path, **changed)


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "own.npz").write_text("hello")
    text = (
        "own.npz: expected a numpy .npz archive with x_train, y_train, x_test, y_test, and could not read it as one. "
        "Write it with numpy.savez."
    )
    with pytest.raises(TaskError, match=exactly(text)):
        load(source(f"mnist:{tmp_path / 'own.npz'}"))


def test_a_source_that_is_not_there_is_refused():
    text = "--data mnist:no.npz: there is no file no.npz. Name an .npz with x_train, y_train, x_test, y_test."
    with pytest.raises(TaskError, match=exactly(text)):
        source("mnist:no.npz")
    text = (
        "--data cats: expected digits, mnist:FILE, cifar10:FILE, npz:FILE, folder:DIR, vowels:DIR, strokes, text, "
        "text:FILE, or a function of yours as package.module:function or file.py:function."
    )
    with pytest.raises(TaskError, match=exactly(text)):
        source("cats")


def test_a_file_that_changes_is_another_task(tmp_path):
    saved(tmp_path)
    before = source(f"mnist:{tmp_path / 'own.npz'}")
    np.savez(tmp_path / "own.npz", **arrays(y_test=np.arange(30)[::-1] % 3))
    after = source(f"mnist:{tmp_path / 'own.npz'}")
    assert before["fingerprint"] != after["fingerprint"]


# --- networks ---


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_arms_start_from_the_same_weights(kind):
    network = {"kind": kind, "depth": 3, "width": 16, "activation": "tanh", "init": "matched"}
    plain, batch = (build(load(DIGITS), network, name, 5) for name in ("none", "batch"))
    weights = [[m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)] for model in (plain, batch)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    other = build(load(DIGITS), network, "none", 6)
    assert not torch.equal(next(other.parameters()), next(plain.parameters()))


@pytest.mark.parametrize(("activation", "std"), [("relu", (2 / 256) ** 0.5), ("tanh", 5 / 3 / 16), ("sigmoid", 4 / 16)])
def test_matched_initialization(activation, std):
    network = {"kind": "mlp", "depth": 3, "width": 256, "activation": activation, "init": "matched"}
    layers = [m for m in build(load(DIGITS), network, "none", 0).modules() if isinstance(m, nn.Linear)]
    assert float(layers[1].weight.detach().std()) == pytest.approx(std, rel=0.02)
    assert float(layers[1].bias.detach().abs().max()) == 0.0


@pytest.mark.parametrize("positions", [0, 2])
@pytest.mark.parametrize("name", sorted(NORMS))
def test_every_norm_standardizes_what_it_is_given(name, positions):
    if (name, positions) == ("instance", 0):
        with pytest.raises(ValueError, match="has one value per statistic"):
            norm(name, 16, positions)
        return
    x = torch.randn((64, 16, 4, 4)[: 2 + positions]) * 3 + 2
    layer = norm(name, 16, positions).train()
    with torch.no_grad():
        for _ in range(60):  # renorm standardizes once its running statistics are near the batch's
            y = layer(x)
    assert y.shape == x.shape
    if name == "none":
        assert torch.equal(x, y)
    else:
        assert float((y**2).mean()) == pytest.approx(1.0, abs=0.05)


def test_groups_divide_the_channels():
    assert [groups(channels) for channels in (2, 12, 16, 24, 32, 64, 100)] == [1, 3, 4, 6, 8, 8, 5]


# --- the user's model ---

GOOD = """
from torch import nn
def build(input_shape, classes, norm):
    return nn.Sequential(nn.Conv2d(input_shape[0], 4, 3), norm(4), nn.Flatten(), nn.Linear(4 * 36, 8), norm(8, 0),
                         nn.Linear(8, classes))
"""


def written(folder, text):
    (folder / "net.py").write_text(text)
    return f"{folder / 'net.py'}:build"


def test_a_users_model_is_built_with_each_norm(tmp_path):
    network = user_network(written(tmp_path, GOOD), load(DIGITS))
    model = build(load(DIGITS), network, "group", 0)
    assert isinstance(model[1], gb.GroupNorm)
    result = train(task=DIGITS, network=network, norm="batch", rate=0.1, batch_size=8, steps=3, seed=0)
    assert result["diverged"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module", "cannot import {file}: ModuleNotFoundError: No module named 'no_such_module'."),
        ("x = 1", "net has no build."),
        ("build = 3", "expected a function, got int."),
        (
            "def build(a): return 1",
            "expected a function build(input_shape, classes, norm) or build(input_shape, classes), got build(a).",
        ),
        ("def build(a, b, c): return c(4, 1)", None),
        ("def build(a, b): raise SystemExit(3)", "build((1, 8, 8), 10) raised SystemExit: 3."),
        (
            "from torch import nn\nclass Own(nn.Module):\n    def forward(self, x): raise SystemExit(3)\n"
            "def build(a, b): return nn.Sequential(nn.BatchNorm2d(1), Own())",
            "the model does not take a batch of shape (8, 1, 8, 8): SystemExit: 3.",
        ),
        ("def build(a, b): return 1", "expected build((1, 8, 8), 10) to return an nn.Module, got int."),
        (
            "from torch import nn\ndef build(a, b): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))",
            "expected a model with BatchNorm layers (nn.BatchNorm1d, 2d, 3d or gammabeta's) from build((1, 8, 8), "
            "10), got Sequential without one: put one where the model normalizes, or write build(input_shape, classes, "
            "norm) and put norm(channels) there.",
        ),
        (
            "from torch import nn\nclass Own(nn.BatchNorm2d):\n    def forward(self, x): return x\n"
            "def build(a, b): return nn.Sequential(Own(1), nn.Flatten(), nn.Linear(64, 10))",
            "BatchNorm cannot stand in place of 0: Own has a forward of its own, which would be lost.",
        ),
        (
            "from torch import nn\nclass Own(nn.Module):\n    def forward(self, x): return {'scores': x}\n"
            "def build(a, b): return nn.Sequential(nn.BatchNorm2d(1), Own())",
            "expected scores of shape (8, 10) for a batch of 8, got dict: wrap the model in one whose forward returns "
            "only the scores.",
        ),
        ("def build(a, b, c): return 1", "expected build((1, 8, 8), 10, norm) to return an nn.Module, got int."),
        (
            "from torch import nn\ndef build(a, b, c): return nn.Flatten()",
            "norm was never called; put norm(channels) where the model normalizes.",
        ),
        (
            "from torch import nn\ndef build(a, b, c):\n    c(4)\n    return nn.Flatten()",
            "a layer made by norm(channels) is not part of the model that was returned.",
        ),
        (
            "from torch import nn\ndef build(a, b, c): return nn.Sequential(nn.Flatten(), c(64))",
            "the model does not take a batch of shape (8, 1, 8, 8): ",
        ),
        (
            "from torch import nn\ndef build(a, b, c): return nn.Sequential(nn.Flatten(), c(64, 0))",
            "expected scores of shape (8, 10) for a batch of 8, got (8, 64).",
        ),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused_in_one_sentence(tmp_path, text, said):
    target = written(tmp_path, text)
    with pytest.raises(TaskError) as caught:
        user_network(target, load(DIGITS))
    message = str(caught.value)
    if said is None:
        said = "build((1, 8, 8), 10, norm) raised ValueError: norm: expected 0 or 2 positional axes, got 1."
    whole = f"--model {target}: " + said.format(file=tmp_path / "net.py")
    assert message == whole or (said.endswith(": ") and message.startswith(whole))
    assert "\n" not in message


def test_a_target_that_is_none_is_refused():
    text = "--model net: expected package.module:function or file.py:function."
    with pytest.raises(TaskError, match=exactly(text)):
        load_builder("net")
    with pytest.raises(TaskError, match=exactly("--model no.py:build: there is no file no.py.")):
        load_builder("no.py:build")


# --- training ---


def test_batches_depend_on_the_seed_alone_and_pass_through_every_image():
    split = load(DIGITS).train
    first = [y for _, y in batches(split, 100, 9, seed=1)]
    again = [y for _, y in batches(split, 100, 9, seed=1)]
    other = [y for _, y in batches(split, 100, 9, seed=2)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    images = torch.cat([x.flatten(1) for x, _ in batches(split, 100, 9, seed=1)])
    assert len(images.unique(dim=0)) == 900


def test_exact_statistics_are_those_of_the_data_and_leave_no_trace():
    network = {"kind": "resnet", "init": "matched"}
    task = load(DIGITS)
    model = build(task, network, "batch", 0).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x_nchw = task.train.x_nchw[:64]
    with exact_statistics(model, x_nchw):
        assert not model.training
        exact = model(x_nchw)
    with torch.no_grad():
        in_training = model(x_nchw)
    # In training a batch is normalized by its own statistics: the same numbers, to rounding.
    assert torch.allclose(exact, in_training, atol=1e-4)
    with exact_statistics(model, x_nchw):
        pass
    assert model.training
    assert before.keys() == dict(model.named_buffers()).keys()


def test_exact_statistics_put_the_moving_averages_back():
    model = gb.BatchNorm1d(3)
    with torch.no_grad():
        model.running_mean.fill_(5.0)
    with exact_statistics(model, torch.randn(16, 3)):
        assert float(model.running_mean.abs().max()) < 3
    assert model.running_mean.tolist() == [5.0, 5.0, 5.0]


def test_training_reaches_a_target_and_says_when():
    network = {"kind": "mlp", "depth": 2, "width": 32, "activation": "relu", "init": "matched"}
    settings = {"task": DIGITS, "network": network, "norm": "batch", "batch_size": 32, "seed": 1}
    result = train(**settings, rate=0.25, steps=100, target=0.85)
    looks = result["accuracy"]
    assert looks[-2][1] < 0.85 <= looks[-1][1]
    assert looks[-2][0] < result["steps"] <= looks[-1][0]
    assert train(**settings, rate=0.25, steps=5, target=0.99)["steps"] is None


def test_a_diverged_run_is_wrong_everywhere():
    network = {"kind": "mlp", "depth": 4, "width": 32, "activation": "relu", "init": "matched"}
    result = train(task=DIGITS, network=network, norm="none", rate=1e6, batch_size=32, steps=50, seed=1)
    assert result["diverged"] is not None
    assert (result["error"], result["loss"]) == (1.0, None)


def test_the_crossing_is_interpolated():
    assert crossing((10, 0.8), (15, 0.9), 0.86) == pytest.approx(13.0)
