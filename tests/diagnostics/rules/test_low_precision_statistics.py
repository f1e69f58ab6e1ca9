"""GB105: an average in 16 bits that stands still."""

import torch
from torch import nn

import gammabeta as gb


def after_batches(norm, number=300):
    """Train on batches of variance exactly 1.03, from a running variance of 1."""
    x = torch.randn(64, 4, dtype=torch.float64)
    x = ((x - x.mean(0)) / x.std(0) * 1.03**0.5).to(norm.weight.dtype)
    for _ in range(number):
        norm(x)
    return norm.running_var.float()


def test_a_bfloat16_average_stalls_where_a_float32_one_arrives():
    torch.manual_seed(0)
    stalled = after_batches(nn.BatchNorm1d(4).bfloat16())
    # 0.1 of 0.03 is less than half of bfloat16's step above 1, which is 1/128.
    assert torch.equal(stalled, torch.ones(4))
    arrived = after_batches(nn.BatchNorm1d(4))
    assert (arrived - 1.03).abs().max() < 1e-3


def test_after_the_fix_it_arrives_and_nothing_else_is_cast():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).bfloat16()
    weight = model[1].weight
    gb.check(model, select="GB105").fix()
    assert model[1].weight is weight
    assert weight.dtype == torch.bfloat16
    assert model[1].running_var.dtype == torch.float32
    # bfloat16 values have a variance that is off by their rounding, 2⁻⁹ each at random and so far less in 64.
    assert (after_batches(model[1]) - 1.03).abs().max() < 0.01
    y = model(torch.randn(8, 4, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16


def test_in_evaluation_and_in_checkpoints_it_is_a_note():
    model = nn.BatchNorm1d(4).half().eval()
    (finding,) = gb.check(model, select="GB105").findings
    assert (finding.severity, finding.evidence["dtype"]) == ("note", "float16")


def test_gammabeta_s_layers_stay_float32_and_are_not_found():
    model = nn.Sequential(gb.BatchNorm1d(4)).bfloat16()
    assert not gb.check(model, select="GB105").findings
