"""GB308: what torch's conversion loses."""

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.rules import conversion_drops_forward


class BatchNormAct(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def test_torch_s_conversion_loses_the_activation_and_set_statistics_does_not():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    model = conversion_drops_forward.flagged().model
    before = model(x)
    assert (before >= 0).all()
    gb.check(model, select="GB308").fix()
    assert torch.equal(model(x), before)
    with pytest.raises(
        TypeError, match="gammabeta with activation='relu', which the layer built from it would not have"
    ):
        nn.SyncBatchNorm.convert_sync_batchnorm(conversion_drops_forward.flagged().model)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct(8)))
    negative = (converted(x) < 0).float().mean().item()
    assert 0.4 < negative < 0.6


def test_one_note_for_all_layers_of_a_kind():
    model = nn.Sequential(nn.BatchNorm2d(3), BatchNormAct(3), nn.Sequential(BatchNormAct(3)))
    (finding,) = gb.check(model, select="GB308").findings
    assert (finding.severity, finding.where) == ("note", "1")
    assert finding.message == "torch's convert_sync_batchnorm would drop the forward of BatchNormAct (in 2 layers)"
    assert finding.evidence == {"layers": ["1", "2.0"]}


def test_gammabeta_s_other_sources_are_named():
    model = nn.Sequential(gb.BatchNorm2d(3, statistics=gb.statistics.Ghost(8), activation="silu"))
    (finding,) = gb.check(model, select="GB308").findings
    assert finding.message.endswith("drop the activation silu and the statistics Ghost(size=8)")


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: an activation, and a place for another layer."""

    def __init__(self, num_features, act):
        super().__init__(num_features)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def converted(*acts):
    return nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(*(BatchNormAct2d(3, act) for act in acts)))


def test_what_a_conversion_has_left_idle_is_found_after_it_and_after_adopting():
    model = converted(nn.ReLU(), nn.Identity(), nn.ReLU(), nn.SiLU())
    for _ in range(2):
        relu, silu = gb.check(model, select="GB308").findings
        assert (relu.severity, relu.where, relu.evidence) == ("warning", "0", {"layers": ["0", "2"]})
        assert relu.message.startswith("nothing calls the act (ReLU) that it holds (in 2 layers): ")
        assert silu.message.startswith("nothing calls the act (SiLU) that it holds: ")
        gb.adopt(model)


def test_what_hooks_or_parametrizations_may_call_is_not_idle():
    model = converted(nn.ReLU())
    model[0].register_forward_hook(lambda module, args, y: module.act(y))
    assert not gb.check(model, select="GB308").findings
    model = converted(nn.Identity())
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Softplus())
    assert not gb.check(model, select="GB308").findings


def test_plain_layers_of_either_library_and_sync_are_not_found():
    model = nn.Sequential(nn.BatchNorm2d(3), gb.BatchNorm2d(3), nn.SyncBatchNorm(3))
    assert not gb.check(model, select="GB308").findings
