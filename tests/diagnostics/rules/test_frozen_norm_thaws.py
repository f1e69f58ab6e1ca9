"""GB101: what a frozen BatchNorm in training mode does to its running statistics."""

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.rules import frozen_norm_thaws


def step_ten_times(model):
    for _ in range(10):
        model(torch.randn(16, 3, 8, 8) + 3)


def test_ten_steps_move_the_statistics_by_deviations_and_after_the_fix_by_nothing():
    torch.manual_seed(0)
    model = frozen_norm_thaws.flagged().model
    norm = model[0][1]
    # As trained on data of mean 0.
    gb.recalibrate(model, [torch.randn(64, 3, 8, 8)])
    mean, deviation = norm.running_mean.clone(), norm.running_var.sqrt()
    frozen = gb.check(model, select="GB101").fix()
    step_ten_times(model)
    assert torch.equal(norm.running_mean, mean)
    frozen.undo()
    step_ten_times(model)
    moved = ((norm.running_mean - mean).abs() / deviation).mean().item()
    # The mean moves by 1 − 0.9¹⁰ = 0.65 of the distance between the means, 3·|Σ weights|/√(Σ weights²), which is
    # near 3·0.5.
    assert moved == pytest.approx(1.0, abs=0.2)


def test_it_is_a_warning_where_the_weights_before_train():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[1].requires_grad_(False)
    (finding,) = gb.check(model, select="GB101").findings
    assert (finding.severity, finding.where) == ("warning", "1")


def test_a_norm_without_affine_on_frozen_features_before_a_head_that_trains_is_meant():
    backbone = nn.Linear(4, 4).requires_grad_(False)
    model = nn.Sequential(backbone, nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
    assert not gb.check(model, select="GB101").findings


def test_a_norm_without_affine_among_frozen_weights_is_found():
    block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)).requires_grad_(False)
    diagnosis = gb.check(nn.Sequential(block, nn.Linear(4, 2)), select="GB101")
    assert [finding.where for finding in diagnosis.errors] == ["0.1"]


@pytest.mark.parametrize("change", [lambda m: m.eval(), gb.freeze, lambda m: m.requires_grad_(False)])
def test_what_is_in_evaluation_or_frozen_or_has_no_gradients_at_all_is_not_found(change):
    model = frozen_norm_thaws.flagged().model
    change(model)
    assert not gb.check(model, select="GB101").findings
