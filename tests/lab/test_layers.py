"""Inputs and outputs of a layer inside a network."""

import pytest
import torch
from torch import nn

from gammabeta.lab.images.layers import input_of, output_of


class Broken(nn.Module):
    def forward(self, x):
        raise AssertionError("what follows the layer must not run")


def test_a_layer_s_input_and_output_are_read_and_nothing_after_it_runs():
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    x = torch.arange(6.0).reshape(2, 3)
    model = nn.Sequential(first, nn.ReLU(), second, Broken())
    hidden = first(x).relu().detach()
    assert torch.equal(input_of(model, second, x), hidden)
    assert torch.equal(output_of(model, second, x), second(hidden).detach())
    with pytest.raises(AssertionError, match="must not run"):  # no hook is left behind
        model(x)
