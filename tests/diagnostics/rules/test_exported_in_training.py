"""GB604: what a model in training mode does although nothing in it trains."""

import pytest
import torch

import gammabeta as gb
from gammabeta.diagnostics.rules import exported_in_training


def companions_matter(model):
    x = torch.randn(4, 3, 8, 8)
    other = torch.cat([x[:1], torch.randn(3, 3, 8, 8)])
    a, b = model(x)[0], model(other)[0]
    return ((a - b).norm() / a.norm()).item()


def test_outputs_depend_on_companions_and_buffers_move_and_after_the_fix_neither():
    torch.manual_seed(0)
    model = exported_in_training.flagged().model
    before = model[1].running_mean.clone()
    assert companions_matter(model) == pytest.approx(0.11, abs=0.05)
    assert not torch.equal(model[1].running_mean, before)
    diagnosis = gb.check(model, select="GB604")
    (finding,) = diagnosis.findings
    assert finding.message == (
        "none of its parameters requires a gradient, yet 1 norm in training mode would move running statistics at each "
        "forward: 1"
    )
    change = diagnosis.fix()
    before = model[1].running_mean.clone()
    assert companions_matter(model) < 1e-6  # rounding
    assert torch.equal(model[1].running_mean, before)
    change.undo()
    assert model.training
    assert model[1].training


def test_a_model_that_trains_or_evaluates_is_not_found():
    model = exported_in_training.flagged().model
    model[0].requires_grad_(True)
    assert not gb.check(model, select="GB604").findings
