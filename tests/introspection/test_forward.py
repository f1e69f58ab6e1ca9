"""The one meaning of a batch, and putting modes back."""

from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.introspection.forward import copied, forward_batch
from gammabeta.introspection.unchanged import modes_kept

X = torch.randn(8, 3, 4, 4)
Y = torch.arange(8)
MASK = torch.ones(8, 4, dtype=torch.bool)
SCALE = torch.full((8, 1, 1, 1), 2.0)


class Taking(nn.Module):
    """A model with a BatchNorm that keeps the arguments that its forward got; subclasses say which it takes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def keep(self, x, *others):
        self.got = (x, *others)
        return self.norm(x)


class One(Taking):
    def forward(self, x):
        return self.keep(x)


class Two(Taking):
    def forward(self, x, scale):
        return self.keep(x * scale, scale)


class Masked(Taking):
    def forward(self, x, attn_mask=None):
        return self.keep(x, attn_mask)


class Lengths(Taking):
    def forward(self, x, lengths=None):
        return self.keep(x, lengths)


class WithLoss(Taking):
    def forward(self, x, targets=None):
        return self.keep(x, targets)


class Flagged(Taking):
    def forward(self, x, return_features=False):
        return self.keep(x, return_features)


class Several(Taking):
    def forward(self, *inputs):
        return self.keep(*inputs)


class Wrapper(nn.Module):
    """As PEFT's and others: it passes everything on."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)


class Keyword(Taking):
    def forward(self, *, image):
        return self.keep(image)


class Whole(Taking):
    def forward(self, batch):
        return self.keep(batch["x"])


Pair = namedtuple("Pair", ["x", "scale"])
# Model, batch, and what its forward has to get (x first).
CASES = [
    (One, X, (X,)),
    (One, (X,), (X,)),
    (One, [X], (X,)),
    (One, (X, Y), (X,)),
    (One, [X, Y, "path"], (X,)),
    (Two, (X, SCALE), (X * SCALE, SCALE)),
    (Two, Pair(X, SCALE), (X * SCALE, SCALE)),
    (Two, (X, SCALE, Y), (X * SCALE, SCALE)),
    (Two, ((X, SCALE), Y), (X * SCALE, SCALE)),
    (Masked, (X, MASK), (X, MASK)),
    (Masked, (X, Y), (X, None)),
    (Masked, (X, MASK, Y), (X, MASK)),
    (Lengths, (X, Y), (X, Y)),
    (WithLoss, (X, Y), (X, Y)),
    (Flagged, (X, Y), (X, False)),
    (Flagged, (X, list(range(8))), (X, False)),
    (Several, (X, MASK), (X, MASK)),
    (Several, (X, Y), (X,)),
    (Keyword, {"image": X}, (X,)),
    (Keyword, ({"image": X}, Y), (X,)),
    (Keyword, UserDict(image=X), (X,)),
    (Keyword, {"image": X, "labels": Y}, (X,)),
    (WithLoss, {"x": X, "targets": Y}, (X, Y)),
    (Whole, ({"x": X}, Y), (X,)),
    (Whole, {"x": X, "label": Y}, (X,)),
    (One, {"x": X, "label": Y, "idx": Y, "path": ["a"] * 8}, (X,)),
    (Lengths, ((X, Y), Y), (X, Y)),
    (Masked, ((X, MASK), Y), (X, MASK)),
]


def same(got, expected):
    return len(got) == len(expected) and all(
        torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b for a, b in zip(got, expected, strict=True)
    )


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("cls", "batch", "expected"), CASES)
def test_a_batch_is_what_the_model_takes(cls, batch, expected, wrapped):
    model = cls()
    forward_batch("op")(Wrapper(model) if wrapped else model, batch)
    assert same(model.got, expected)


@pytest.mark.parametrize(("cls", "batch", "expected"), CASES)
def test_every_operation_takes_the_same_batches(cls, batch, expected):
    """Each used to read a tuple in its own way: positional arguments here, its first item there."""
    model = cls()
    forward_batch("op")(model, copied(batch))
    assert same(model.got, expected)
    assert gb.recalibrate(model, [batch]).changed == ["norm"]
    assert gb.train_eval_gap(model, [batch]).layers[0].samples == 8
    assert gb.check(model.eval(), batch).warnings == ()
    model.norm.running_mean += 5
    diagnosis = gb.check(model.eval(), loader=[batch])
    assert [finding.code for finding in diagnosis.warnings] == ["GB109"]
    assert "norm" in diagnosis.fix().changed
    assert gb.check(model.eval(), loader=[batch]).warnings == ()
    assert len(gb.fold(model, batch).sites) == 1
    gb.adopt(model)
    assert gb.fuse(model, batch).left.keys() == {"norm"}
    assert gb.convert(model, "group", groups=1, batches=[batch]).changed == ["norm"]


def test_forward_takes_anything():
    class Graph:
        def __init__(self, x):
            self.nodes = x

    def forward(model, graph):
        return model(graph.nodes)

    model, batch = One(), Graph(X)
    assert gb.recalibrate(model, [batch], forward=forward).changed == ["norm"]
    assert gb.train_eval_gap(model, [batch], forward=forward).layers[0].samples == 8
    model.eval()
    assert gb.check(model, batch, forward=forward).norms == 1
    assert gb.fold(model, batch, forward=forward).error < 1e-6
    model.norm.running_mean += 5
    diagnosis = gb.check(model, loader=[batch], forward=forward)
    assert [finding.code for finding in diagnosis.warnings] == ["GB109"]
    diagnosis.fix()
    assert gb.check(model, loader=[batch], forward=forward).warnings == ()
    gb.adopt(model)
    assert gb.fuse(model, batch, forward=forward).left.keys() == {"norm"}
    assert gb.convert(model, "group", groups=1, batches=[batch], forward=forward).changed == ["norm"]


@pytest.mark.parametrize("batch", ["a", 3, (), [], ("a", X), None])
def test_other_batches_raise_with_what_to_do(batch):
    with pytest.raises(TypeError) as error:
        forward_batch("op")(One(), batch)
    assert str(error.value) == (
        "op: expected batches as the model takes them (a tensor, a tuple or list of positional arguments, or a mapping "
        f"of keyword arguments), got {type(batch).__name__}: say how it goes through the model by "
        "forward=lambda model, batch: …."
    )


def test_targets_that_the_forward_does_not_get_are_no_inputs():
    """They used to be looked at for padding, and for values that are not finite."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8)

        def forward(self, x):
            return self.norm(self.conv(x)) * self.scale if hasattr(self, "scale") else self.norm(self.conv(x))

    x, tags = torch.randn(16, 4, 20), torch.ones(16, 20, dtype=torch.int64)
    for sample, length in enumerate(range(4, 20)):
        tags[sample, length:] = 0
    model = Tagger()
    assert gb.check(model, (x, tags), select="GB205").findings == ()
    assert gb.check(model, (x, tags), forward=lambda m, batch: m(batch[0]), select="GB205").findings == ()
    model.scale = float("inf")
    (finding,) = gb.check(model, (x, torch.full((16, 20), float("nan"))), select="GB404").findings
    assert "inputs given are not finite" not in finding.message


def test_an_error_of_the_forward_says_how_the_batch_was_passed():
    with pytest.raises(RuntimeError) as error:
        gb.check(Two(), (X, torch.ones(5)))
    assert str(error.value).startswith(
        "check: expected inputs that the model takes, got tensors of shapes (8, 3, 4, 4), (5,) (passed as x, scale; "
        "forward= passes them in another way), on which its forward raised RuntimeError: "
    )


def test_a_mapping_with_other_names_raises_with_the_right_ones():
    with pytest.raises(TypeError) as error:
        gb.check(Keyword(), {"image": X, "pixels": X})
    assert str(error.value) == (
        "check: expected a mapping of the forward's arguments (image), got one with pixels: rename or remove these, or "
        "say how it goes through the model by forward=lambda model, batch: …."
    )


def test_a_container_without_a_forward_is_checked_without_the_loader_s_batches():
    diagnosis = gb.check(nn.ModuleDict({"student": One(), "teacher": One()}), loader=[X])
    assert diagnosis.norms == 2
    assert "inputs" in " ".join(diagnosis.idle)


def test_a_loader_that_gives_each_batch_once_still_has_the_first_for_the_fix():
    model = One().eval()
    model.norm.running_mean += 5
    diagnosis = gb.check(model, loader=iter([X, X + 1]))
    change = diagnosis.fix()
    assert change.entries[-1].numbers["samples"] == 16


def test_a_forward_may_write_to_its_inputs():
    class Writing(One):
        def forward(self, x):
            return self.norm(x.mul_(2))

    given = X.clone()
    gb.check(Writing(), (given, Y))
    assert torch.equal(given, X)


@pytest.mark.parametrize("training", [True, False])
def test_every_module_gets_its_own_mode_back(training):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2))).train(training)
    model[1][0].train(not training)

    def change_modes():
        with modes_kept(model):
            model.train(not training)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        change_modes()
    assert [module.training for module in model.modules()] == [training, training, training, not training]


def test_looking_at_a_loader_draws_no_random_numbers():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4, shuffle=True)
    before = torch.get_rng_state()
    gb.check(One(), loader=loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_of_our_own_is_not_reported_as_the_forward_s(monkeypatch):
    monkeypatch.setattr("gammabeta.diagnostics.measurement.sample", None)
    with pytest.raises(TypeError, match="object is not callable"):
        gb.check(One(), X)
