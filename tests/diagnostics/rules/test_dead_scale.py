"""GB403: channels that only output β."""

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.rules import dead_scale


def test_a_dead_channel_gives_its_bias_and_no_gradient():
    torch.manual_seed(0)
    model = dead_scale.flagged().model
    nn.init.normal_(model[1].bias)
    y = model(torch.randn(16, 4))
    assert torch.equal(y[:, 1], model[1].bias[1].expand(16))
    y[:, [1, 4]].sum().backward()
    assert model[0].weight.grad.abs().max() == 0


def test_the_channels_are_named():
    (finding,) = gb.check(dead_scale.flagged().model, select="GB403").findings
    assert finding.message == "γ is 0 in 2 of 8 channels, which only output β: 1, 4"
    assert finding.evidence == {"dead": 2, "channels": 8}


def test_a_subnormal_scale_is_as_dead_as_0():
    norm = nn.BatchNorm1d(3)
    nn.init.normal_(norm.weight)
    with torch.no_grad():
        norm.weight[2] = 1e-40
    (finding,) = gb.check(norm, select="GB403").findings
    assert finding.message == "γ is 0 in 1 of 3 channels, which only output β: 2"


@pytest.mark.parametrize("trained", [False, True])
def test_a_scale_of_zeros_is_a_start_or_in_a_trained_model_a_dead_branch(trained):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    nn.init.zeros_(model[1].weight)
    if trained:
        nn.init.normal_(model[0].weight)
    assert [finding.where for finding in gb.check(model, select="GB403").findings] == ["1"] * trained
