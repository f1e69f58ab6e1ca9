"""What a norm is: one answer for each class of module, the same for every caller."""

import pytest
import torch
from tests.surgery.models import FrozenBatchNorm2d
from tests.surgery.norm_act import BatchNormAct2d, FrozenBatchNormAct2d
from torch import nn
from torch.nn.utils import parametrize

import gammabeta as gb
from gammabeta.diagnostics.record import record_model
from gammabeta.introspection.norms import (
    CLASS,
    FROZEN,
    NAME,
    STATISTICS,
    NormAffine,
    NormAxes,
    is_batch_norm,
    is_frozen_batch_norm,
    is_norm,
    is_norm_act,
    is_ours,
    kind_of,
    norm_of,
)
from gammabeta.surgery.folding.affine import is_candidate


class Foreign(nn.Module):
    """A norm of another library: γ, and β where asked."""

    def __init__(self, channels=4, *, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        if bias:
            self.bias = nn.Parameter(torch.zeros(channels))
        self.variance_epsilon = 1e-6


class LlamaRMSNorm(Foreign):
    pass


class MyLlamaLayer(LlamaRMSNorm):
    pass


class Layer_NormT5(Foreign):  # noqa: N801
    pass


class LayerNormCustom(Foreign):
    pass


class ScaleNorm(nn.Module):
    """A γ that is one number, under another name."""

    def __init__(self):
        super().__init__()
        self.g = nn.Parameter(torch.ones(()))


class AdaLayerNorm(Foreign):
    """A norm with a layer inside, so that its parameters do not show what it computes."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(2, 4)


class ABN(nn.Module):
    """A BatchNorm whose name does not say so, as inplace_abn has it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.bias = nn.Parameter(torch.zeros(4))
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))


class ConvAndStatistics(ABN):
    """A convolution and its BatchNorm in one module."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4, 1, 1))


class DetectronFrozenBatchNorm(FrozenBatchNorm2d):
    pass


class OwnForward(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class NormalHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))


def adopted(module):
    model = nn.Sequential(module)
    gb.adopt(model)
    return model[0]


def scripted(module):
    return torch.jit.script(module)


def affine():
    return nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))


def quantized(name, *args):
    return getattr(torch.ao.nn.quantized, name)(*args)


# Module; kind; known by; holds statistics that evaluation uses; they move; frozen; ours.
TORCHS = [
    (nn.BatchNorm1d(4), "batch", CLASS, True, True, False, False),
    (nn.BatchNorm2d(4, track_running_stats=False), "batch", CLASS, False, False, False, False),
    (nn.SyncBatchNorm(4), "batch", CLASS, True, True, False, False),
    (nn.LazyBatchNorm2d(), "batch", CLASS, True, True, False, False),
    (nn.InstanceNorm2d(4), "instance", CLASS, False, False, False, False),
    (nn.InstanceNorm2d(4, track_running_stats=True), "instance", CLASS, True, True, False, False),
    (nn.LazyInstanceNorm2d(), "instance", CLASS, True, True, False, False),
    (nn.GroupNorm(2, 4), "group", CLASS, False, False, False, False),
    (nn.LayerNorm(4), "layer", CLASS, False, False, False, False),
    (nn.RMSNorm(4), "rms", CLASS, False, False, False, False),
    (OwnForward(4), "batch", CLASS, True, True, False, False),
]
OURS = [
    (gb.BatchNorm2d(4), "batch", CLASS, True, True, False, True),
    (gb.BatchNorm2d(4, statistics=gb.statistics.Running()), "batch", CLASS, True, False, True, True),
    (gb.InstanceNorm2d(4, track_running_stats=True), "instance", CLASS, True, True, False, True),
    (gb.GroupNorm(2, 4), "group", CLASS, False, False, False, True),
    (gb.LayerNorm(4), "layer", CLASS, False, False, False, True),
    (gb.RMSNorm(4), "rms", CLASS, False, False, False, True),
    (adopted(nn.SyncBatchNorm(4)), "batch", CLASS, True, True, False, True),
    (adopted(BatchNormAct2d(4)), "batch", CLASS, True, True, False, True),
    (adopted(FrozenBatchNorm2d(4)), "batch", CLASS, True, False, True, True),
]
OTHERS = [
    (scripted(nn.BatchNorm2d(4)), "batch", CLASS, True, True, False, False),
    (scripted(nn.GroupNorm(2, 4)), "group", CLASS, False, False, False, False),
    (scripted(nn.InstanceNorm2d(4)), "instance", CLASS, False, False, False, False),
    (BatchNormAct2d(4), "batch", CLASS, True, True, False, False),
    (FrozenBatchNorm2d(4), "batch", FROZEN, True, False, True, False),
    (DetectronFrozenBatchNorm(4), "batch", FROZEN, True, False, True, False),
    (FrozenBatchNormAct2d(4), "batch", FROZEN, True, False, True, False),
    (LlamaRMSNorm(), "rms", NAME, False, False, False, False),
    (MyLlamaLayer(), "rms", NAME, False, False, False, False),
    (Layer_NormT5(), "layer", NAME, False, False, False, False),
    (LayerNormCustom(bias=True), "layer", NAME, False, False, False, False),
    (ScaleNorm(), None, NAME, False, False, False, False),
    (AdaLayerNorm(), None, NAME, False, False, False, False),
    (nn.LocalResponseNorm(2), None, NAME, False, False, False, False),
    (ABN(), None, STATISTICS, True, False, False, False),
    (ConvAndStatistics(), None, STATISTICS, True, False, False, False),
    (quantized("BatchNorm2d", 4), "batch", CLASS, True, True, False, False),
    (quantized("LayerNorm", 4, *affine(), 1.0, 0), "layer", CLASS, False, False, False, False),
    (quantized("GroupNorm", 2, 4, *affine(), 1.0, 0), "group", CLASS, False, False, False, False),
]
NONE = [nn.Linear(2, 2), nn.ReLU(), NormalHead(), nn.Sequential(nn.BatchNorm1d(2)), scripted(nn.Linear(2, 2))]


def named(case):
    module = case[0] if isinstance(case, tuple) else case
    return getattr(module, "original_name", type(module).__name__)


@pytest.mark.parametrize("case", [*TORCHS, *OURS, *OTHERS], ids=named)
def test_what_a_norm_is(case):
    module, kind, known_by, uses_running, tracks, frozen, ours = case
    norm = norm_of(module)
    assert (norm.kind, norm.known_by) == (kind, known_by)
    assert (norm.uses_running, norm.tracks, norm.frozen, norm.is_ours) == (uses_running, tracks, frozen, ours)


@pytest.mark.parametrize("case", [*TORCHS, *OURS, *OTHERS], ids=named)
def test_everyone_gets_the_same_answer(case):
    module, kind, known_by, uses_running, *_, ours = case
    changeable = known_by in (CLASS, FROZEN)
    assert is_norm(module) is changeable
    assert is_batch_norm(module) is (changeable and kind == "batch")
    assert is_frozen_batch_norm(module) is (known_by == FROZEN)
    assert is_ours(module) is ours
    assert kind_of(module) == kind
    assert is_candidate(module) is (uses_running or (kind == "batch" and known_by == CLASS))
    assert [norm.kind for norm in record_model(nn.Sequential(module)).norms] == ([kind] if kind else [])


@pytest.mark.parametrize("module", NONE, ids=named)
def test_what_is_no_norm(module):
    assert norm_of(module) is None
    asked = (is_norm, is_batch_norm, is_frozen_batch_norm, is_ours, is_norm_act, is_candidate, kind_of)
    assert not any(ask(module) for ask in asked)


@pytest.mark.parametrize(
    ("module", "axes", "channel"),
    [
        (nn.BatchNorm2d(4), NormAxes(samples=True), 1),
        (nn.InstanceNorm2d(4), NormAxes(), 1),
        (nn.GroupNorm(2, 4), NormAxes(groups=2), 1),
        (nn.LayerNorm(4), NormAxes(last=1), -1),
        (nn.LayerNorm((3, 4)), NormAxes(last=2), None),
        (nn.RMSNorm(4), NormAxes(last=1, centered=False), -1),
        (LlamaRMSNorm(), NormAxes(last=1, centered=False), -1),
        (ScaleNorm(), None, None),
    ],
)
def test_over_which_axes(module, axes, channel):
    found = norm_of(module).axes
    assert found == axes
    assert (None if found is None else found.channel) == channel


def test_how_weight_and_bias_act_is_known_by_class_only():
    """A name does not tell whether γ is the weight or 1 + weight, as in Gemma."""
    assert norm_of(nn.BatchNorm2d(4)).affine == NormAffine("weight", "bias", 0.0)
    assert norm_of(nn.LayerNorm(4, bias=False)).affine == NormAffine("weight", None, 0.0)
    assert norm_of(nn.InstanceNorm2d(4)).affine == NormAffine(None, None, 0.0)
    assert norm_of(LlamaRMSNorm()).affine == NormAffine("weight", None, None)
    assert norm_of(FrozenBatchNorm2d(4)).affine == NormAffine("weight", "bias", None)
    assert norm_of(LlamaRMSNorm()).eps == 1e-6


def test_a_parametrization_is_not_computed():
    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError("computed")

    norm = nn.LayerNorm(4)
    parametrize.register_parametrization(norm, "weight", nn.Identity())
    norm.parametrizations.weight[0].forward = Never().forward
    assert norm_of(norm).affine == NormAffine("weight", "bias", 0.0)


def test_batch_norms_that_hold_their_activation():
    assert norm_of(BatchNormAct2d(4)).has_activation
    assert is_norm_act(BatchNormAct2d(4))
    assert norm_of(FrozenBatchNormAct2d(4)).has_activation
    assert not is_norm_act(FrozenBatchNormAct2d(4))
    assert not norm_of(adopted(BatchNormAct2d(4))).has_activation  # it is the layer's own now


class TestWhereTheAnswersDisagreed:
    """Seven predicates recognized norms before, and disagreed. Each of these cases has one answer now."""

    def test_a_scripted_batch_norm_is_left_with_the_reason_and_not_overlooked(self):
        for operation in (gb.freeze, lambda m: gb.set_statistics(m, gb.statistics.Ghost(2))):
            change = operation(nn.Sequential(scripted(nn.BatchNorm2d(4))))
            assert change.left == {"0": "it is scripted: adopt the model before torch.jit.script"}
        change = gb.recalibrate(nn.Sequential(scripted(nn.BatchNorm2d(4))), [torch.randn(4, 4, 2, 2)])
        assert change.left == {"0": "it is scripted: recalibrate before torch.jit.script"}

    def test_fuse_says_why_it_leaves_a_frozen_batch_norm(self):
        model = nn.Sequential(FrozenBatchNorm2d(4), nn.ReLU()).eval()
        (reason,) = gb.fuse(model, torch.randn(2, 4, 3, 3)).left.values()
        assert reason.endswith("FrozenBatchNorm2d, not ours: gammabeta.adopt first")

    @pytest.mark.parametrize("norm", [LayerNormCustom(bias=True), Layer_NormT5(), MyLlamaLayer(), ABN()], ids=named)
    def test_what_check_or_fold_takes_for_a_norm_does_not_decay(self, norm):
        groups = gb.parameter_groups(nn.Sequential(norm), weight_decay=0.1)
        assert [group["weight_decay"] for group in groups] == [0.0]

    def test_a_weight_beside_running_statistics_decays(self):
        weight = ConvAndStatistics()
        groups = gb.parameter_groups(weight, weight_decay=0.1)
        assert groups[0]["params"] == [weight.weight]

    def test_what_check_knows_no_kind_for_still_does_not_decay(self):
        assert [g["weight_decay"] for g in gb.parameter_groups(ScaleNorm(), weight_decay=0.1)] == [0.0]


@pytest.mark.parametrize("cls", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_torch_s_own_class_applies_no_activation_whatever_its_children(cls):
    module = cls(4)
    module.drop, module.act = nn.Identity(), nn.ReLU()
    assert not norm_of(module).has_activation
    # Adopted, it would apply one that its forward never did.
    if cls is nn.BatchNorm2d:
        model = nn.Sequential(module).eval()
        x = torch.randn(2, 4, 3, 3)
        before = model(x)
        gb.adopt(model)
        torch.testing.assert_close(model(x), before)


def test_another_library_s_norm_may_hold_its_size_as_one_number():
    class FusedRMSNorm(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.normalized_shape = size
            self.weight = nn.Parameter(torch.ones(size))

        def forward(self, x):
            return x * x.square().mean(-1, keepdim=True).rsqrt() * self.weight

    model = nn.Sequential(nn.Linear(4, 4), FusedRMSNorm(4))
    assert norm_of(model[1]).axes.last == 1
    groups = gb.parameter_groups(model, 0.1)
    assert any(p is model[1].weight for group in groups if group["weight_decay"] == 0 for p in group["params"])
    assert not gb.check(model, torch.randn(8, 4)).errors
