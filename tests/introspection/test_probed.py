"""form_of: what a norm of any class computes, asked of a copy of it; and that the original notices nothing."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gammabeta as gb
from gammabeta.introspection import probed
from gammabeta.introspection.norms import NAME, PROBE, NormAffine, NormAxes, norm_of
from gammabeta.introspection.probed import form_of, form_or_reason
from gammabeta.layers.form import INPUT, OUTPUT, PROMOTED, WEIGHT, Form

SIZE = 6


class Norm(nn.Module):
    """An RMSNorm written as Llama's, whose steps the classes below change."""

    def __init__(self, size=SIZE, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def unit(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        return self.weight * self.unit(x.float()).to(x.dtype)


class RoundsOnce(Norm):
    def forward(self, x):
        return (self.weight * self.unit(x.float())).to(x.dtype)


class OnePlus(Norm):
    def forward(self, x):
        return (self.unit(x.float()) * (1.0 + self.weight.float())).type_as(x)


class OnePlusInItsDtype(Norm):
    def forward(self, x):
        return (self.unit(x.float()) * (1 + self.weight)).type_as(x)


class LikeT5(Norm):
    def forward(self, x):
        x = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (x.to(self.weight.dtype) if self.weight.dtype != torch.float32 else x)


class InItsInputsDtype(Norm):
    def forward(self, x):
        return self.unit(x) * self.weight


class Gamma(nn.Module):
    """Other names, and β."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(SIZE))
        self.scale = nn.Parameter(torch.ones(SIZE))

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-3) * self.scale + self.shift


class WithBias(Norm):
    """An RMSNorm with a shift, which torch's and ours have not."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(SIZE))

    def forward(self, x):
        return (self.unit(x.float()) * self.weight.float() + self.bias.float()).to(x.dtype)


class ChannelsFirst(nn.Module):
    def __init__(self, *, images=True):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, SIZE, 1, 1) if images else torch.ones(SIZE, 1))
        self.epsilon = 1e-12

    def forward(self, x):
        x = x - x.mean(1, keepdim=True)
        return x / torch.sqrt(x.square().mean(1, keepdim=True) + self.epsilon) * self.gain


class NoWeightNorm(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


class UnusedBufferNorm(NoWeightNorm):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.ones(SIZE))


class Float64Only(Norm):
    def forward(self, x):
        if x.dtype != torch.float64:
            raise TypeError("float64, please")
        return self.unit(x) * self.weight


class FrozenStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        for name, value in {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}.items():
            self.register_buffer(name, value)
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        axes = (1, -1, 1, 1)
        scale = self.weight * torch.rsqrt(self.running_var + 1e-4)
        return (x - self.running_mean.view(axes)) * scale.view(axes)


KNOWN = [
    (Norm(), Form("rms", SIZE, 1e-6, weight="weight", rounds=INPUT)),
    (RoundsOnce(), Form("rms", SIZE, 1e-6, weight="weight")),
    (OnePlus(), Form("rms", SIZE, 1e-6, weight="weight", offset=1.0)),
    (OnePlusInItsDtype(), Form("rms", SIZE, 1e-6, weight="weight", offset=1.0, rounds_scale=True)),
    (LikeT5(), Form("rms", SIZE, 1e-6, weight="weight", rounds=WEIGHT)),
    (InItsInputsDtype(), Form("rms", SIZE, 1e-6, weight="weight", rounds=PROMOTED, same_bits=False)),
    (Gamma(), Form("layer", SIZE, 1e-3, weight="scale", bias="shift", rounds=PROMOTED, same_bits=False)),
    (WithBias(), Form("rms", SIZE, 1e-6, weight="weight", bias="bias")),
    (ChannelsFirst(), Form("layer", SIZE, 1e-12, 1, "gain", rounds=PROMOTED, same_bits=False)),
    (ChannelsFirst(images=False), Form("layer", SIZE, 1e-12, 1, "gain", rounds=PROMOTED, same_bits=False)),
    (NoWeightNorm(), Form("rms", 12, 1e-5, same_bits=False)),
    (UnusedBufferNorm(), Form("rms", SIZE, 1e-5, same_bits=False)),
    (Float64Only(), Form("rms", SIZE, 1e-6, weight="weight")),
    (FrozenStatistics(), Form("batch", 3, 1e-4, 1, "weight")),
    (nn.LayerNorm(SIZE), Form("layer", SIZE, 1e-5, weight="weight", bias="bias")),
    (nn.RMSNorm(SIZE, eps=1e-6), Form("rms", SIZE, 1e-6, weight="weight")),
]


class OnlyNearOne(Norm):
    def forward(self, x):
        return super().forward(x) if x.abs().max() < 50 else self.weight * x


class OnlyFarFromOne(Norm):
    def forward(self, x):
        return super().forward(x) if x.abs().max() > 0.5 else self.weight * x.tanh()


class OnlyInEvaluation(Norm):
    def forward(self, x):
        return 2 * super().forward(x) if self.training else super().forward(x)


class OnlyIn32Bits(Norm):
    def forward(self, x):
        return super().forward(x) * (2 if x.dtype == torch.bfloat16 else 1)


class Random(Norm):
    def forward(self, x):
        return super().forward(x) + 1e-3 * torch.randn_like(x)


class Drops(Norm):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.1, self.training)


class DetachesTheVariance(Norm):
    def unit(self, x):
        return x * torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + self.eps)


class NoGradient(Norm):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class AbsoluteWeight(Norm):
    def forward(self, x):
        return self.weight.abs() * self.unit(x)


class EpsilonOutside(Norm):
    def unit(self, x):
        return x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-3)


class EpsilonAsMinimum(Norm):
    def unit(self, x):
        return nn.functional.normalize(x, dim=-1) * math.sqrt(SIZE)


class Unbiased(Norm):
    def unit(self, x):
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + self.eps)


class Counts(Norm):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class MovesABuffer(Norm):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(SIZE))

    def forward(self, x):
        self.seen += 1
        return super().forward(x)


class MovesItsWeight(Norm):
    def forward(self, x):
        y = super().forward(x)
        self.weight.data *= 1.001
        return y


class WritesItsInput(Norm):
    def forward(self, x):
        y = super().forward(x.clone())
        x.data.zero_()
        return y


class Gated(Norm):
    def forward(self, x, gate=None):
        return super().forward(x) if gate is None else super().forward(x) * gate


class WithAChild(Norm):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()


class Holds(Norm):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.ones(2, 3))


class ByAHead(nn.Module):
    """Weights of several heads over one axis: no vector."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, SIZE))

    def forward(self, x):
        return x * self.weight


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(SIZE))

    def forward(self, x):
        return x * self.gamma


class Raises(Norm):
    def forward(self, x):
        raise RuntimeError("not today")


class CannotBeCopied(Norm):
    def __init__(self):
        super().__init__()
        self.lock = (i for i in range(3))


class TwoOutputs(Norm):
    def forward(self, x):
        return super().forward(x), x


def parametrized():
    module = Norm()
    nn.utils.parametrize.register_parametrization(module, "weight", nn.Identity())
    return module


def with_own_forward():
    module = Norm()
    module.forward = lambda x: x
    return module


UNKNOWN = [
    OnlyNearOne(), OnlyFarFromOne(), OnlyInEvaluation(), OnlyIn32Bits(), Random(), Drops(), DetachesTheVariance(),
    NoGradient(), AbsoluteWeight(), EpsilonOutside(), EpsilonAsMinimum(), Unbiased(), Counts(), MovesABuffer(),
    MovesItsWeight(), WritesItsInput(), Gated(), WithAChild(), Holds(), ByAHead(), LayerScale(), Raises(),
    CannotBeCopied(), TwoOutputs(), parametrized(), with_own_forward(), torch.jit.script(nn.LayerNorm(4)),
    Norm().to("meta"), nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True), nn.GroupNorm(2, 4),
    nn.GroupNorm(1, 4), nn.Linear(3, 3), nn.PReLU(3), nn.LazyBatchNorm1d(), nn.Dropout(), nn.LayerNorm((2, 3)),
    nn.LocalResponseNorm(2), nn.Conv1d(1, 3, 1),
]  # fmt: skip


def named(case):
    return type(case[0] if isinstance(case, tuple) else case).__name__


@pytest.fixture(autouse=True)
def fresh():
    probed._answers.clear()


@pytest.mark.parametrize("case", KNOWN, ids=named)
def test_known_forms(case):
    module, form = case
    assert form_or_reason(module) == form


@pytest.mark.parametrize("module", UNKNOWN, ids=named)
def test_what_computes_no_known_form(module):
    assert form_of(module) is None
    assert isinstance(form_or_reason(module), str)


def test_reasons():
    known = "computes none of the known forms: RMSNorm and LayerNorm of the last axis or of axis 1"
    assert form_or_reason(AbsoluteWeight()) == f"AbsoluteWeight {known}"
    assert form_or_reason(EpsilonAsMinimum()).endswith("computes RMSNorm on some inputs, and something else of zeros")
    assert form_or_reason(Gated()) == "the forward of Gated takes x, gate, and not one tensor"
    others = "computes RMSNorm on some inputs, and something else on others"
    assert form_or_reason(OnlyInEvaluation()) == f"OnlyInEvaluation {others}"
    assert form_or_reason(OnlyIn32Bits()).startswith("OnlyIn32Bits computes RMSNorm in float32, and something else in")
    assert form_or_reason(DetachesTheVariance()) == "DetachesTheVariance computes RMSNorm, with other gradients"
    assert form_or_reason(Counts()) == "Counts changes its attributes when it is called"
    assert form_or_reason(MovesABuffer()) == "MovesABuffer changes its Parameters or buffers when it is called"
    assert form_or_reason(WithAChild()) == "WithAChild holds other modules"


@pytest.mark.parametrize("module", [*(module for module, _ in KNOWN), *UNKNOWN], ids=named)
def test_the_original_notices_nothing(module):
    before = {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
    tensors = {
        name: (t, t.detach().clone())
        for name, t in [*module.named_parameters(), *module.named_buffers()]
        if not nn.parameter.is_lazy(t)
    }
    numbers, python, grad = torch.get_rng_state(), random.getstate(), torch.is_grad_enabled()
    form_of(module)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert random.getstate() == python
    assert torch.is_grad_enabled() == grad
    assert {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()} == before
    for name, t in [*module.named_parameters(), *module.named_buffers()]:
        if name in tensors:
            assert t is tensors[name][0]
            assert t.is_meta or torch.equal(t, tensors[name][1])


def test_hooks_and_calls_are_not_those_of_the_original():
    calls = []
    module = Counts()
    module.register_forward_hook(lambda *_: calls.append("after"))
    module.register_forward_pre_hook(lambda *_: calls.append("before"))
    module.register_full_backward_hook(lambda *_: calls.append("backward"))
    module.weight.register_hook(lambda g: calls.append("gradient"))
    assert form_of(module) is None
    assert (calls, module.calls, module.weight.grad, module.training) == ([], 0, None, True)


def test_the_answer_is_kept_for_the_class_and_its_settings(monkeypatch):
    runs = []
    probe = probed._probe
    monkeypatch.setattr(probed, "_probe", lambda module: runs.append(module) or probe(module))
    for module in (Norm(), Norm(), Norm(eps=1e-5), Norm(8), Norm(), Norm(eps=1e-5)):
        assert form_of(module).eps == module.eps
    assert len(runs) == 3


def test_inside_other_modes():
    """Neither the caller's modes nor its default dtype or device decide."""
    form = KNOWN[0][1]
    with torch.no_grad():
        assert form_of(Norm()) == form
    probed._answers.clear()
    with torch.inference_mode():
        assert form_of(Norm()) == form
    probed._answers.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert form_of(Norm()) == form
    probed._answers.clear()
    with torch.device("meta"):
        assert form_of(KNOWN[1][0]) == KNOWN[1][1]


def test_16_bit_modules_in_any_mode_have_the_same_form():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        probed._answers.clear()
        assert form_of(Norm().to(dtype).eval()) == KNOWN[0][1]


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(2, 70),
    eps=st.sampled_from([1e-12, 1e-8, 1e-6, 1e-5, 3e-4, 2.0**-10, 0.01]),
    centered=st.booleans(),
    offset=st.sampled_from([0.0, 1.0]),
    last=st.booleans(),
    held=st.booleans(),
)
def test_any_combination(size, eps, centered, offset, last, held):
    axis = -1 if last else 1

    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(torch.ones(size))
            if held:
                self.small = eps

        def forward(self, x):
            x_ = x.float().movedim(axis, -1)
            x_ = x_ - x_.mean(-1, keepdim=True) if centered else x_
            x_ = x_ / (x_.square().mean(-1, keepdim=True) + eps).sqrt() * (offset + self.g.float())
            return x_.movedim(-1, axis).to(x.dtype)

    form = form_of(Made())
    assert (form.kind, form.size, form.axis) == ("layer" if centered else "rms", size, axis)
    assert (form.weight, form.bias, form.offset, form.rounds) == ("g", None, offset, OUTPUT)
    assert form.eps == pytest.approx(eps, rel=1e-3)


class T5LayerNorm(LikeT5):
    """Called a LayerNorm, as in transformers."""


class TestNormOf:
    def test_a_name_is_overruled(self):
        assert (norm_of(T5LayerNorm()).kind, norm_of(T5LayerNorm()).known_by) == ("layer", NAME)
        norm = norm_of(T5LayerNorm(), probe=True)
        assert (norm.kind, norm.known_by, norm.eps) == ("rms", PROBE, 1e-6)
        assert norm.axes == NormAxes(last=1, centered=False)
        assert norm.affine == NormAffine("weight", None, 0.0)

    def test_what_the_weight_does(self):
        assert norm_of(OnePlus(), probe=True).affine == NormAffine("weight", None, 1.0)
        assert norm_of(Gamma(), probe=True).affine == NormAffine("scale", "shift", 0.0)

    def test_axes(self):
        norm = norm_of(ChannelsFirst(), probe=True)
        assert norm.axes == NormAxes(pointwise=True)
        assert norm.axes.channel == 1

    def test_frozen_statistics(self):
        norm = norm_of(FrozenStatistics(), probe=True)
        assert (norm.kind, norm.frozen, norm.tracks, norm.uses_running) == ("batch", True, False, True)

    def test_what_is_no_known_form_is_as_without_a_probe(self):
        for module in (Random(), LayerScale(), nn.BatchNorm2d(3), gb.LayerNorm(3), nn.Linear(2, 2)):
            assert norm_of(module, probe=True) == norm_of(module)

    def test_after_adoption(self):
        model = nn.Sequential(OnePlus(), ChannelsFirst())
        gb.adopt(model)
        assert norm_of(model[0]).affine == NormAffine("weight", None, 1.0)
        assert norm_of(model[1]).axes == NormAxes(pointwise=True)
        assert norm_of(model[1]).is_ours


def test_the_check_and_parameter_groups_see_what_a_norm_is():
    from gammabeta.diagnostics.record import record_model

    model = nn.Sequential(nn.Linear(SIZE, SIZE), T5LayerNorm(), Gamma())
    assert [(norm.name, norm.kind) for norm in record_model(model).norms] == [("1", "rms"), ("2", "layer")]
    weights, rest = gb.parameter_groups(model, 0.1)
    assert [id(p) for p in weights["params"]] == [id(model[0].weight)]
    assert {id(p) for p in rest["params"]} >= {id(model[2].scale), id(model[2].shift), id(model[1].weight)}
