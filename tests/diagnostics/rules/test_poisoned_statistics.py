"""GB102: statistics that are not finite, and how long they stay."""

import pytest
import torch
from torch import nn

import gammabeta as gb


@pytest.mark.parametrize("adopted", [False, True])
def test_one_bad_batch_poisons_torch_s_layer_for_good_and_an_adopted_one_not(adopted):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4))
    if adopted:
        gb.adopt(model)
    bad = torch.randn(32, 4)
    bad[5, 2] = float("nan")
    model(bad)
    for _ in range(1000):
        model(torch.randn(32, 4) + 2)
    y = model.eval()(torch.randn(64, 4) + 2)
    diagnosis = gb.check(model, select="GB102")
    if adopted:
        assert not diagnosis.findings
        # Ten batches' worth of memory, 320 values: a standard error of 0.04 to 0.08.
        assert (model[0].running_mean - 2).abs().max() < 0.4
        assert y.isfinite().all()
    else:
        (finding,) = diagnosis.errors
        assert finding.message == "running mean NaN in 1 of 4 channels: 2; running variance NaN in 1 of 4 channels: 2"
        assert y[:, 2].isnan().all()
        assert y[:, [0, 1, 3]].isfinite().all()


def test_every_kind_is_told_with_its_channels():
    norm = nn.BatchNorm2d(9)
    norm.running_mean[:6] = float("inf")
    norm.running_var[1] = -1e-9
    norm.running_var[7] = float("inf")
    (finding,) = gb.check(norm, select="poisoned-statistics").findings
    assert finding.where == ""
    assert finding.message == (
        "running mean infinite in 6 of 9 channels: 0, 1, 2, 3 and 2 more; running variance infinite in 1 of 9 "
        "channels: 7; running variance negative in 1 of 9 channels: 1"
    )
    assert finding.evidence == {
        "running mean infinite": 6,
        "running variance infinite": 1,
        "running variance negative": 1,
    }


def test_recalibrating_on_the_loader_mends_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    model[1].running_var[0] = -1
    loader = [torch.randn(32, 3) for _ in range(3)]
    gb.check(model, loader=loader, select="GB102").fix()
    expected = torch.cat(loader) @ model[0].weight.T + model[0].bias
    # Exact moments in float64 of float32 inputs.
    torch.testing.assert_close(model[1].running_var, expected.var(0), rtol=1e-5, atol=0)


def diverged():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
    return model


def test_in_a_model_that_diverged_the_parameters_lead_and_nothing_is_recalibrated():
    model = diverged()
    loader = [torch.randn(32, 3) for _ in range(3)]
    diagnosis = gb.check(model, loader=loader)
    parameters, statistics = diagnosis.errors
    assert (parameters.code, statistics.code) == ("GB404", "GB102")
    assert statistics.message == (
        "running mean NaN in 4 of 4 channels: 0, 1, 2, 3; running variance NaN in 4 of 4 channels: 0, 1, 2, 3; and so "
        "in 1 more norm"
    )
    assert str(statistics.fix) == (
        "mend GB404 first: with parameters or outputs that are not finite, statistics measured anew are not finite "
        "either"
    )
    assert "fix() mends" not in str(diagnosis)
    assert not diagnosis.fix().changed


def test_outputs_that_are_not_finite_for_another_reason_come_first_too():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.log(x - 1e6)

    model = nn.Sequential(nn.Linear(3, 4), Broken(), nn.BatchNorm1d(4)).eval()
    model[2].running_mean.fill_(float("nan"))
    diagnosis = gb.check(model, loader=[torch.randn(8, 3)], select=["GB102", "GB404"])
    assert [f.code for f in diagnosis.findings] == ["GB404", "GB102"]
    assert diagnosis.findings[1].fix.what.startswith("mend GB404 first")
