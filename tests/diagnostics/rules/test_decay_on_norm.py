"""GB401: what decay does to γ, and that the fix removes it and keeps the optimizer's state."""

import math

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.rules import decay_on_norm


@pytest.mark.parametrize("fixed", [False, True])
def test_a_scale_without_gradient_decays_to_a_third_and_after_the_fix_it_stays(fixed):
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.05)
    if fixed:
        gb.check(model, optimizer=optimizer, select="GB401").fix()
    for _ in range(1000):
        model[1].weight.grad = torch.zeros(8)
        optimizer.step()
    # (1 − lr·λ)¹⁰⁰⁰ = 0.999¹⁰⁰⁰, in a thousand roundings of float32.
    expected = 1.0 if fixed else math.exp(1000 * math.log1p(-0.001))
    assert model[1].weight.tolist() == pytest.approx([expected] * 8, rel=1e-4)


def test_the_fix_keeps_state_and_makes_one_group_and_undo_restores_the_groups():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, lr=0.1)
    model(torch.randn(16, 4)).square().sum().backward()
    optimizer.step()
    groups = [list(map(id, group["params"])) for group in optimizer.param_groups]
    state = {id(p): optimizer.state[p]["exp_avg"].clone() for p in model.parameters()}
    change = gb.check(model, optimizer=optimizer, select="GB401").fix()
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert {key: optimizer.param_groups[1][key] for key in ("lr", "betas", "eps")} == {
        "lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8,
    }  # fmt: skip
    assert all(torch.equal(optimizer.state[p]["exp_avg"], state[id(p)]) for p in model.parameters())
    optimizer.step()
    assert not gb.check(model, optimizer=optimizer, select="GB401").findings
    change.undo()
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == groups


def test_what_requires_no_gradient_or_is_in_a_group_without_decay_is_not_found():
    model = decay_on_norm.flagged().model
    model[1].requires_grad_(False)
    assert not gb.check(model, optimizer=torch.optim.AdamW(model.parameters()), select="GB401").findings
    model[1].requires_grad_(True)
    assert not gb.check(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), select="GB401").findings


def test_the_decay_is_in_the_message():
    example = decay_on_norm.flagged()
    (finding,) = gb.check(example.model, optimizer=[example.optimizer], select="GB401").findings
    assert finding.message == "weight decay of 0.05 on weight and 0.05 on bias"
    assert finding.evidence == {"weight": 0.05, "bias": 0.05}
