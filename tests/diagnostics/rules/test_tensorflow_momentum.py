"""GB305: how much of a batch's own noise stays in the running mean."""

import pytest
import torch
from torch import nn

import gammabeta as gb


@pytest.mark.parametrize("momentum", [0.99, 0.01])
def test_the_running_mean_s_error_is_the_batch_s_by_the_derived_factor(momentum):
    torch.manual_seed(0)
    channels, size = 2000, 16
    norm = nn.BatchNorm1d(channels, momentum=momentum)
    for _ in range(700):  # 0.99⁷⁰⁰ is 9e-4: the initial value is forgotten
        norm(torch.randn(size, channels))
    error = norm.running_mean.square().mean().sqrt() * size**0.5
    # A sum of independent batches with weights m·(1 − m)ᵏ has a variance of m/(2 − m); 2,000 channels resolve 5 %.
    assert error.item() == pytest.approx((momentum / (2 - momentum)) ** 0.5, rel=0.08)


@pytest.mark.parametrize(
    ("momentum", "message"),
    [
        (0.9, "momentum 0.9: 0.9 of the running statistics come from the last batch; in TensorFlow's convention that "
              "would be torch's 0.1"),
        (1.0, "momentum 1: the running statistics are those of the last batch only"),
        (0.0, "momentum 0: the running statistics never move from 0 and 1"),
    ],
)  # fmt: skip
def test_messages(momentum, message):
    (finding,) = gb.check(nn.BatchNorm2d(4, momentum=momentum), select="GB305").findings
    assert finding.message == message


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4, momentum=None), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, momentum=1)]
)
def test_what_is_usual_or_tracks_nothing_is_not_found(norm):
    assert not gb.check(norm, select="GB305").findings


def test_a_frozen_layer_s_momentum_is_not_looked_at():
    model = nn.Sequential(nn.BatchNorm2d(4, momentum=0.0))
    gb.freeze(model)
    assert not gb.check(model, select="GB305").findings


@pytest.mark.parametrize("given", [True, False])
def test_the_fix_recalibrates_or_says_that_it_is_left(given):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=0.99))
    batches = [torch.randn(16, 4) + i for i in range(4)]
    model(batches[0])
    diagnosis = gb.check(model, loader=batches if given else None, select="GB305")
    change = diagnosis.fix()
    assert change.changed == ["0", "0"] if given else ["0"]
    assert model[0].momentum == 0.01
    if given:
        assert str(diagnosis.findings[0].fix) == "momentum=0.01 and gammabeta.recalibrate(model, loader, where='0')"
        # float32 moments
        torch.testing.assert_close(model[0].running_mean, torch.cat(batches).mean(0), rtol=1e-5, atol=1e-6)
    else:
        (entry,) = change.entries
        assert entry.what == "momentum 0.01 in place of 0.99; gammabeta.recalibrate(model, batches) is left"
