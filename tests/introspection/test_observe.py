"""Observing: what it records of a forward, and that it leaves no trace."""

import copy
import random

import pytest
import torch
from torch import nn

from gammabeta.introspection.observe import axis_in, observe


class Branches(nn.Module):
    """Two norms, one behind a view of a linear layer, one on a tensor with two readers; every kind of state changes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.conv = nn.Conv1d(6, 4, 1)
        self.second = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(1))
        self.fails = False

    def forward(self, x):
        self.seen.add_(1)
        self.cache = x
        x.add_(1)
        with torch.no_grad():
            self.linear.bias.mul_(2)
        random.random()
        z = self.norm(self.linear(x).transpose(1, 2))
        h = self.conv(z)
        if self.fails:
            raise KeyError("inside")
        return self.drop(self.second(h) + h.relu_())


def snapshot(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {name: (id(tensor), tensor.detach().clone()) for name, tensor in tensors.items()},
        {name: (module.training, dict(module._forward_hooks)) for name, module in model.named_modules()},
        {name: sorted(vars(module)) for name, module in model.named_modules()},
        {name: id(parameter.grad) for name, parameter in model.named_parameters()},
    )


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_the_inputs_and_the_random_numbers_are_as_they_were(training, fails):
    model = Branches().train(training)
    model.fails = fails
    model.linear.weight.grad = torch.randn_like(model.linear.weight)
    model.norm.register_forward_hook(lambda *_: None)
    x = torch.randn(3, 7, 5)
    given, state, before = x.clone(), torch.get_rng_state(), snapshot(model)
    numbers = random.getstate()
    if fails:
        with pytest.raises(KeyError, match="inside"):
            observe(model, x)
    else:
        observe(model, x)
    after = snapshot(model)
    for name, (identity, value) in before[0].items():
        assert after[0][name][0] == identity
        assert torch.equal(after[0][name][1], value), name
    assert after[1:] == before[1:]
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == numbers


def test_the_maker_is_found_through_a_transposed_view_with_the_axis_of_the_channels():
    model = Branches().eval()
    seen = observe(model, torch.randn(3, 7, 5))
    (norm,) = seen.calls_of("norm")
    assert norm.inputs[0].shape == (3, 6, 7)
    assert norm.inputs[0].layout == "strided"
    (linear,) = seen.producers(norm.inputs[0].data)
    assert linear.module == "linear"
    assert axis_in(norm.inputs[0], 1, linear.outputs[0]) == 2


def test_readers_are_told_across_a_write_in_place():
    model = Branches().eval()
    seen = observe(model, torch.randn(3, 7, 5))
    (second,) = seen.calls_of("second")
    readers = seen.readers(second.inputs[0].data)
    assert {op.name for op in readers if not seen.is_within(op, second)} == {"aten.relu_"}
    added = next(op for op in seen.operations if op.name == "aten.add")
    assert second.inputs[0].data not in {tensor.data for tensor in added.inputs}


def test_data_that_the_model_keeps_is_told():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 1)
            self.box = []

        def forward(self, x):
            y = self.conv(x)
            self.box.append(y)
            return y * 2

    model = Keeps()
    seen = observe(model, torch.randn(1, 2, 3))
    assert seen.calls_of("conv")[0].outputs[0].data in seen.kept


def test_no_activation_is_held():
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.ReLU()).eval()
    seen = observe(model, torch.randn(1, 2, 3))
    assert seen.kept == frozenset()
    assert [call.module for call in seen.calls] == ["", "0", "1", "2"]
    copy.deepcopy(seen)


def test_compiled_in_place_is_seen_eagerly():
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)).eval()
    model.compile(backend="eager")
    assert [call.module for call in observe(model, torch.randn(1, 2, 3)).calls] == ["", "0", "1"]


def test_a_lazy_model_is_refused():
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole text is compared
        observe(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 3))
    assert str(raised.value) == (
        "0.weight: expected a model whose parameters are initialized, got a lazy one, which its first forward "
        "would change: call the model once."
    )
