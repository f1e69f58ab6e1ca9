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


def resnet_like():
    """Return a network with its first norm beside the head, as ResNets have it."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.conv1, model.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    model.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4))
    model.flatten, model.fc = nn.Flatten(), nn.Linear(64, 2)
    return model


def test_a_linear_probe_leaves_the_backbone_s_norms_out_on_purpose():
    model = resnet_like()
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
    diagnosis = gb.check(model, optimizer=optimizer, select="GB402")
    assert diagnosis.findings == ()
    lost = torch.optim.SGD([p for p in model.parameters() if p.ndim > 1], lr=0.1)
    assert {f.where for f in gb.check(model, optimizer=lost, select="GB402").findings} == {"bn1", "layer1.1"}


def test_it_is_added_to_the_optimizer_of_the_weights_before_it_with_their_settings():
    parts = nn.ModuleDict({"g": resnet_like(), "d": resnet_like()})
    first = torch.optim.SGD([{"params": [p for p in parts["g"].parameters() if p.ndim > 1], "lr": 0.5}], lr=0.1)
    second = torch.optim.SGD(parts["d"].parameters(), lr=0.1)
    change = gb.check(parts, optimizer=[first, second], select="GB402").fix()
    assert change.changed == ["g.bn1", "g.layer1.1"]
    assert [group["lr"] for group in first.param_groups] == [0.5]
    assert len(first.param_groups[0]["params"]) == 3 + 4
    assert len(second.param_groups[0]["params"]) == len(list(parts["d"].parameters()))
    change.undo()
    assert len(first.param_groups[0]["params"]) == 3


def test_an_optimizer_that_a_scheduler_holds_stays_as_it_is():
    example = norm_not_optimized.flagged()
    scheduler = torch.optim.lr_scheduler.StepLR(example.optimizer, 1)
    change = gb.check(example.model, optimizer=example.optimizer, select="GB402").fix()
    assert change.changed == []
    assert change.left["1"] == (
        "GB402 norm-not-optimized: by hand: build the optimizer with gammabeta.parameter_groups(model, "
        "weight_decay=0.0001), and its scheduler after that; this one stays as it is: a scheduler holds the optimizer"
    )
    assert len(example.optimizer.param_groups) == 1
    scheduler.step()
