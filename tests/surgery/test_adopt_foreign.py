"""adopt of other libraries' norms: by what they compute. Subclasses of torch's that add nothing, everywhere."""

import copy
import io
import pickle

import pytest
import torch
from tests.introspection.test_probed import (
    ChannelsFirst,
    Float64Only,
    Gamma,
    Gated,
    InItsInputsDtype,
    LikeT5,
    Norm,
    NoWeightNorm,
    OnePlus,
    OnePlusInItsDtype,
    Random,
    RoundsOnce,
    UnusedBufferNorm,
    WithBias,
)
from torch import nn

import gammabeta as gb
from gammabeta.statistics import Batch, Ghost, Running

SIZE = 6
# The sums of six float32 values in two orders, and 16-bit values next to each other.
ROUNDING = {"rtol": 2e-6, "atol": 2e-6}


class BN(nn.BatchNorm2d):
    pass


class OtherDefaults(nn.BatchNorm2d):
    def __init__(self, channels, eps=1e-3, momentum=0.01):
        super().__init__(channels, eps, momentum)
        self.note = "mine"

    def describe(self):
        return self.note


class PassesOn(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input)


class Casts(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = nn.functional.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )  # fmt: skip
        return x.permute(0, 3, 1, 2)


FORMS = [
    Norm, RoundsOnce, WithBias, OnePlus, OnePlusInItsDtype, LikeT5, InItsInputsDtype, Gamma, ChannelsFirst,
    NoWeightNorm, UnusedBufferNorm, LayerNorm2d,
]  # fmt: skip
SUBCLASSES = [BN, OtherDefaults, PassesOn]


def make(cls):
    torch.manual_seed(0)
    module = cls(SIZE) if issubclass(cls, nn.LayerNorm | nn.BatchNorm2d) else cls()
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    return module


def given(cls, dtype=torch.float32):
    torch.manual_seed(1)
    first = issubclass(cls, ChannelsFirst | LayerNorm2d | nn.BatchNorm2d)
    return torch.randn((2, SIZE, 4, 3) if first else (2, 5, SIZE)).to(dtype)


def run(module, x):
    x = x.clone().requires_grad_()
    y = module(x)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], g)]


@pytest.mark.parametrize("cls", [*FORMS, *SUBCLASSES])
class TestEach:
    def test_outputs_and_gradients(self, cls):
        module, x = make(cls), given(cls)
        for mode in (True, False):
            before = run(copy.deepcopy(module).train(mode), x)
            model = nn.Sequential(copy.deepcopy(module)).train(mode)
            assert gb.adopt(model).changed == ["0"]
            for mine, theirs in zip(run(model[0], x), before, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)

    def test_it_is_still_of_its_class_with_its_state(self, cls):
        module = make(cls)
        state, objects = module.state_dict(), {id(p) for p in module.parameters()}
        model = nn.Sequential(module)
        gb.adopt(model)
        assert model[0] is module
        assert isinstance(module, cls)
        assert type(module).__name__ == cls.__name__
        assert type(module).__mro__[1].__module__.startswith("gammabeta.layers")
        assert list(module.state_dict()) == list(state)
        assert all(torch.equal(module.state_dict()[key], value) for key, value in state.items())
        assert {id(p) for p in module.parameters()} == objects
        fresh = make(cls)
        fresh.load_state_dict(module.state_dict())
        module.load_state_dict(fresh.state_dict())

    def test_release_and_undo_are_exact(self, cls):
        module = make(cls)
        before = dict(vars(module))
        model = nn.Sequential(module)
        gb.adopt(model)
        assert gb.release(model).changed == ["0"]
        assert type(module) is cls
        assert vars(module) == before
        gb.adopt(model).undo()
        assert type(module) is cls
        assert vars(module) == before
        assert list(vars(module)) == list(before)

    def test_copies_and_pickles(self, cls):
        model = nn.Sequential(make(cls)).eval()
        gb.adopt(model)
        x = given(cls)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
            assert type(other[0]) is type(model[0])
            assert torch.equal(other(x), model(x))
        assert gb.release(loaded).changed == ["0"]
        assert type(loaded[0]) is cls

    def test_activation_residual_and_mask(self, cls):
        module, x = make(cls).eval(), given(cls)
        reference = copy.deepcopy(module)(x)
        model = nn.Sequential(module)
        gb.adopt(model)
        residual = torch.randn_like(x)
        module.activation = "relu"
        torch.testing.assert_close(module(x, residual), torch.relu(reference + residual), rtol=1e-5, atol=1e-5)
        if isinstance(module, nn.BatchNorm2d):
            return
        channel_axis = 1 if x.ndim == 4 else -1
        mask = torch.rand(x.movedim(channel_axis, -1).shape[:-1]) > 0.5
        expected = torch.relu(reference) * mask.unsqueeze(channel_axis)
        torch.testing.assert_close(module(x, mask=mask), expected, rtol=1e-5, atol=1e-5)
        reason = gb.release(model).left["0"]
        assert reason == f"{cls.__name__} has no activation, and relu would be lost" or isinstance(
            module, nn.BatchNorm2d
        )


LOW = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("cls", [Norm, RoundsOnce, WithBias, OnePlus, OnePlusInItsDtype, LikeT5, LayerNorm2d])
@pytest.mark.parametrize("weights", [*LOW, torch.float32])
@pytest.mark.parametrize("dtype", [*LOW, torch.float32])
def test_16_bits_are_those_of_a_class_that_rounds_in_the_same_places(cls, dtype, weights):
    if cls is LayerNorm2d and dtype != weights:
        pytest.skip("torch's own layer_norm takes one dtype")
    module, x = make(cls).to(weights), given(cls, dtype)
    expected = copy.deepcopy(module)(x)
    model = nn.Sequential(module)
    gb.adopt(model)
    y = model(x)
    assert y.dtype == expected.dtype
    if y.dtype in LOW:
        # Two orders of a float32 sum differ by some 1e-7, which moves one of 10,000 values over a rounding boundary.
        assert float((y == expected).float().mean()) >= 0.98
    torch.testing.assert_close(y, expected, rtol=1e-2 if y.dtype in LOW else 2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", LOW)
def test_16_bits_of_a_class_that_rounds_each_step_are_nearer_to_float64(dtype):
    module, x = make(InItsInputsDtype).to(dtype), given(InItsInputsDtype, dtype)
    exact = copy.deepcopy(module).double()(x.double())
    theirs = (copy.deepcopy(module)(x).double() - exact).abs().max()
    model = nn.Sequential(module)
    change = gb.adopt(model)
    assert str(change).endswith(
        "InItsInputsDtype now runs on gammabeta as RMSNorm; in 16 bits it rounds at other steps"
    )
    mine = (model(x).double() - exact).abs().max()
    assert mine <= theirs
    assert mine <= torch.finfo(dtype).eps * exact.abs().max()


def test_a_model_cast_after_adoption_keeps_its_dtype():
    """The weight stays float32, and no float32 reaches the layer behind, which has 16 bits."""
    model = nn.Sequential(make(Norm), nn.Linear(SIZE, SIZE))
    gb.adopt(model)
    model.bfloat16()
    assert model[0].weight.dtype == torch.float32
    assert model(given(Norm, torch.bfloat16)).dtype == torch.bfloat16
    assert copy.deepcopy(model)(given(Norm, torch.bfloat16)).dtype == torch.bfloat16
    gb.release(model)
    assert "stayed_float32" not in vars(model[0])


def test_without_keep_float32_a_cast_is_that_of_the_class():
    model = nn.Sequential(make(Norm))
    theirs = copy.deepcopy(model).bfloat16()
    gb.adopt(model, keep_float32=False)
    model.bfloat16()
    assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(model(given(Norm, torch.bfloat16)), theirs(given(Norm, torch.bfloat16)))


@pytest.mark.parametrize("cls", [ChannelsFirst, LayerNorm2d])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts_are_those_of_the_class(cls, layout):
    module, x = make(cls), given(cls).contiguous(memory_format=layout)
    expected = copy.deepcopy(module)(x)
    gb.adopt(nn.Sequential(module))
    assert module(x).stride() == expected.stride()


def test_what_it_says():
    model = nn.ModuleDict({"a": make(OnePlus), "b": make(LayerNorm2d), "c": Random(), "d": Gated(), "e": make(Gamma)})
    change = gb.adopt(model)
    assert str(change) == (
        "adopt: 3 changed, 2 left alone\n"
        "  a  OnePlus now runs on gammabeta as RMSNorm with scale 1 + weight\n"
        "  b  LayerNorm2d now runs on gammabeta as LayerNorm with channels on axis 1\n"
        "  c  left alone: Random computes none of the known forms: RMSNorm and LayerNorm of the last axis or of "
        "axis 1\n"
        "  d  left alone: the forward of Gated takes x, gate, and not one tensor\n"
        "  e  Gamma now runs on gammabeta as LayerNorm; in 16 bits it rounds at other steps"
    )
    assert repr(model["a"]) == "OnePlus(gammabeta's RMSNorm, 6, eps=1e-06, scale=1 + weight)"
    assert repr(model["b"]) == "LayerNorm2d(gammabeta's LayerNorm, 6, eps=1e-06, axis=1)".replace("1e-06", "1e-05")


class Constant(nn.Module):
    """A frozen BatchNorm by another name, with four buffers."""

    def __init__(self):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(3) + 0.5)

    def forward(self, x):
        scale = self.weight * torch.rsqrt(self.running_var + 1e-5)
        return (x - self.running_mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def test_a_frozen_batch_norm_by_any_name():
    model, x = nn.Sequential(Constant()), torch.randn(2, 3, 4, 4)
    expected = model(x)
    assert str(gb.adopt(model)).endswith("Constant now runs on gammabeta as BatchNorm2d with Running()")
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    gb.release(model)
    assert type(model[0]) is Constant


def test_a_module_with_a_name_of_ours_is_left_alone():
    module = make(Norm)
    module.activation = "silu"
    assert gb.adopt(module).left == {"": "Norm has an attribute activation, and so have layers of gammabeta's"}


def test_a_class_whose_other_methods_would_be_lost_is_left_alone():
    class Loads(Norm):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)

    reason = "Loads has a _load_from_state_dict of its own, which would be lost"
    assert gb.adopt(Loads()).left == {"": reason}


def test_float64_only():
    module, x = make(Float64Only).double(), given(Norm, torch.float64)
    expected = module(x)
    gb.adopt(module)
    torch.testing.assert_close(module(x), expected)


def test_hooks_run_once_a_forward():
    calls = []
    module = make(Norm)
    module.register_forward_hook(lambda *_: calls.append(1))
    gb.adopt(module)
    assert calls == []
    module(given(Norm))
    assert calls == [1]


def test_beside_a_scripted_module():
    model = nn.Sequential(torch.jit.script(nn.Linear(SIZE, SIZE)), make(Norm))
    assert gb.adopt(model).changed == ["1"]
    _, rest = gb.parameter_groups(model, 0.1)
    assert any(p is model[1].weight for p in rest["params"])


def test_compiled():
    module, x = make(OnePlus), given(OnePlus)
    gb.adopt(module)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize("cls", SUBCLASSES)
class TestSubclassesThatAddNothing:
    def test_freeze(self, cls):
        model = nn.Sequential(make(cls))
        change = gb.freeze(model)
        assert change.changed == ["0"]
        assert model[0].statistics == Running()
        gb.unfreeze(model)
        assert model[0].statistics == Batch()
        assert isinstance(model[0], cls)

    def test_freeze_both(self, cls):
        model = nn.Sequential(make(cls))
        gb.freeze(model, affine=True)
        assert model[0].statistics == Running()
        assert not any(p.requires_grad for p in model.parameters())

    def test_set_statistics(self, cls):
        model = nn.Sequential(make(cls))
        assert gb.set_statistics(model, Ghost(2)).changed == ["0"]
        assert model[0].statistics == Ghost(2)
        assert isinstance(model[0], cls)

    def test_convert(self, cls):
        model = nn.Sequential(make(cls))
        assert gb.convert(model, "group", groups=2).changed == ["0"]
        assert type(model[0]) is gb.GroupNorm
        assert model[0].eps == cls(3).eps


def test_a_subclass_of_sync_batch_norm():
    class Sync(nn.SyncBatchNorm):
        pass

    model = nn.Sequential(Sync(3))
    assert gb.adopt(model).changed == ["0"]
    assert model[0].statistics == gb.statistics.Synced()
    gb.release(model)
    assert type(model[0]) is Sync


def test_methods_of_a_subclass_are_still_there():
    module = make(OtherDefaults)
    gb.adopt(module)
    assert module.describe() == "mine"
    assert (module.eps, module.momentum) == (1e-3, 0.01)


def test_a_group_norm_that_casts():
    torch.manual_seed(0)
    module, x = Casts(2, SIZE), torch.randn(2, SIZE, 3)
    expected = module(x)
    gb.adopt(module)
    assert isinstance(module, gb.GroupNorm)
    torch.testing.assert_close(module(x), expected, **ROUNDING)


def test_convert_says_what_a_foreign_norm_normalizes():
    model = nn.Sequential(make(Norm), make(LayerNorm2d), nn.BatchNorm2d(SIZE))
    change = gb.convert(model, "group", groups=2)
    assert change.changed == ["2"]
    assert change.left == {
        "0": "Norm normalizes the last axes, and not channels at axis 1",
        "1": "LayerNorm2d normalizes the channels of each position on their own",
    }
