"""GB402: γ that no step ever moves."""

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.rules import norm_not_optimized


@pytest.mark.parametrize("fixed", [False, True])
def test_the_scale_stays_at_1_with_a_gradient_and_after_the_fix_it_moves(fixed):
    torch.manual_seed(0)
    example = norm_not_optimized.flagged()
    model, optimizer = example.model, example.optimizer
    if fixed:
        gb.check(model, optimizer=optimizer, select="GB402").fix()
    for _ in range(20):
        optimizer.zero_grad()
        (model(torch.randn(8, 3, 6, 6)) - 1).square().mean().backward()
        optimizer.step()
    assert model[1].weight.grad.abs().max() > 0
    assert bool((model[1].weight == 1).all()) != fixed


def test_a_part_of_which_nothing_is_optimized_is_meant():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    assert not gb.check(model, optimizer=optimizer, select="GB402").findings


def test_several_optimizers_together_have_everything():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(4))
    first, second = torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[1].parameters())
    assert gb.check(model, optimizer=first, select="GB402").findings
    assert not gb.check(model, optimizer=[first, second], select="GB402").findings


def test_what_is_in_two_groups_is_found():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [model[1].weight]})
    (finding,) = gb.check(model, optimizer=optimizer, select="GB402").findings
    assert (finding.where, finding.message) == ("1", "weight: in 2 groups, each of which steps it")


def test_the_message_names_what_is_missing():
    example = norm_not_optimized.flagged()
    (finding,) = gb.check(example.model, optimizer=example.optimizer, select="GB402").findings
    assert finding.message == "weight and bias: in no optimizer, although requires_grad is set"
