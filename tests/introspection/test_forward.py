"""Reading a batch, and putting modes back."""

from collections import UserDict

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.introspection.forward import forward_batch, input_of
from gammabeta.introspection.unchanged import modes_kept

X = torch.randn(8, 3, 4, 4)


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, *, image):
        return self.norm(image)


@pytest.mark.parametrize("batch", [X, (X, 1), [X], (X,)])
def test_a_batch_is_a_tensor_or_begins_with_one(batch):
    assert input_of(batch, "op", "hand others.") is X


@pytest.mark.parametrize("batch", [{"image": X}, ({"image": X}, 1), UserDict(image=X)])
def test_a_batch_is_keyword_arguments_or_begins_with_them(batch):
    model = Keyword().eval()
    assert torch.equal(forward_batch("op")(model, batch), model(image=X))


@pytest.mark.parametrize("batch", ["a", 3, (), [], ("a", X), None])
def test_other_batches_raise_with_what_to_do(batch):
    with pytest.raises(TypeError) as error:
        input_of(batch, "op", "hand others.")
    assert str(error.value) == (
        "op: expected batches of tensors, of tuples that begin with one, or of mappings, got "
        f"{type(batch).__name__}: hand others."
    )


def test_every_operation_takes_the_same_batches():
    """`recalibrate` used to refuse a tuple that begins with a mapping, which `train_eval_gap` took."""
    model = Keyword().eval()
    assert gb.recalibrate(model, [({"image": X}, 1)]).changed == ["norm"]
    assert gb.train_eval_gap(model, [({"image": X}, 1)]).batches == 1


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
