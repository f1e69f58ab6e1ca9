"""adopt of other libraries' norms: what a model that worked before does, it does afterwards."""

import copy

import pytest
import torch
from tests.introspection.test_probed import SIZE, ChannelsFirst, Gamma, Norm, OnePlus, WithBias
from tests.surgery.test_adopt_foreign import LayerNorm2d
from torch import nn

import gammabeta as gb


def adopted(module):
    module = copy.deepcopy(module)
    change = gb.adopt(module)
    assert change.changed == [""], str(change)
    return module


def reason(module):
    return gb.adopt(module).left[""]


# The axis.


class SecondToLastNorm(nn.Module):
    def __init__(self, axis=-2):
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.ones(SIZE, *[1] * (-axis - 1)))

    def forward(self, x):
        x = x - x.mean(self.axis, keepdim=True)
        return x * torch.rsqrt(x.square().mean(self.axis, keepdim=True) + 1e-5) * self.weight


class TransposingNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(SIZE))
        self.bias = nn.Parameter(torch.zeros(SIZE))

    def forward(self, x):
        return nn.functional.layer_norm(x.transpose(-1, -2), (SIZE,), self.weight, self.bias).transpose(-1, -2)


class OfSequences(nn.Module):
    """Channels on axis 1 of three."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(SIZE, 1))

    def forward(self, x):
        x = x - x.mean(1, keepdim=True)
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5) * self.weight


@pytest.mark.parametrize("module", [SecondToLastNorm(-2), SecondToLastNorm(-3), TransposingNorm()])
def test_an_axis_counted_from_the_end_is_not_axis_1(module):
    before = type(module)
    text = reason(module)
    assert f"{before.__name__} computes LayerNorm over an axis counted from the end" in text
    assert type(module) is before


@pytest.mark.parametrize("module", [OfSequences(), ChannelsFirst(), LayerNorm2d(SIZE)])
def test_inputs_of_a_rank_that_no_probe_had_are_refused(module):
    module = adopted(module)
    ranks = " or ".join(map(str, module.form.ranks))
    with pytest.raises(ValueError, match=rf"expected an input of {ranks} axes .*, got 7 axes"):
        module(torch.randn(2, SIZE, 2, 2, 2, 2, 2))


def test_three_axes_stay_three():
    module = adopted(OfSequences())
    assert module.form.ranks == (3,)
    x = torch.randn(2, SIZE, 4)
    torch.testing.assert_close(module(x), OfSequences()(x))


# The layout.


class OfTorch(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(SIZE))

    def forward(self, x):
        return nn.functional.layer_norm(x, (SIZE,), self.weight, None, 1e-5)


class MadeContiguous(Norm):
    def forward(self, x):
        return super().forward(x).contiguous()


def views(first):
    whole = torch.randn(2, SIZE, 4, 3) if first else torch.randn(2, 4, 3, SIZE)
    if first:
        return {
            "whole": whole,
            "channels last": whole.contiguous(memory_format=torch.channels_last),
            "width first": whole.transpose(2, 3),
            "batch inside": torch.randn(4, 3, SIZE, 2).permute(3, 2, 0, 1),
            "some": torch.randn(2, SIZE + 2, 4, 3)[:, 1:-1],
        }
    return {
        "whole": whole,
        "heads": whole.transpose(1, 2),
        "sequence first": torch.randn(4, 2, SIZE).transpose(0, 1),
        "channels first": torch.randn(2, SIZE, 4).transpose(1, 2),
        "some": torch.randn(2, 4, SIZE + 2)[..., 1:-1],
    }


@pytest.mark.parametrize("module", [Norm(), OnePlus(), WithBias(), OfTorch(), MadeContiguous(), Gamma()])
def test_layouts_of_the_last_axis_are_those_of_the_class(module):
    mine = adopted(module)
    for name, x in views(first=False).items():
        assert mine(x).stride() == module(x).stride(), name
        torch.testing.assert_close(mine(x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", [ChannelsFirst(), LayerNorm2d(SIZE)])
def test_layouts_of_axis_1_are_those_of_the_class(module):
    mine = adopted(module)
    for name, x in views(first=True).items():
        assert mine(x).stride() == module(x).stride(), name
        torch.testing.assert_close(mine(x), module(x), rtol=1e-5, atol=1e-5)


def test_a_view_behind_the_norm_of_queries():
    module, x = Norm(), torch.randn(2, 5, 4 * SIZE, requires_grad=True)

    def attend(norm):
        return norm(x.view(2, 5, 4, SIZE).transpose(1, 2)).transpose(1, 2).view(2, 5, -1)

    expected = attend(module)
    y = attend(adopted(module))
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    for mine, theirs in zip(torch.autograd.grad(y, x, g), torch.autograd.grad(expected, x, g), strict=True):
        torch.testing.assert_close(mine, theirs)


# Initialization.


class Zeroed(OnePlus):
    def reset_parameters(self):
        nn.init.zeros_(self.weight)


class ZeroedBatchNorm(nn.BatchNorm2d):
    def reset_parameters(self):
        super().reset_parameters()
        nn.init.zeros_(self.weight)


@pytest.mark.parametrize("module", [Zeroed(), ZeroedBatchNorm(SIZE)])
def test_reset_parameters_is_that_of_the_class(module):
    module = adopted(module)
    cls = type(module)
    nn.init.normal_(module.weight)
    module.reset_parameters()
    assert type(module) is cls
    assert float(module.weight.abs().max()) == 0


@pytest.mark.parametrize(
    ("module", "weight", "bias"), [(OnePlus(), 0.0, None), (Gamma(), 1.0, 0.0), (WithBias(), 1, 0)]
)
def test_reset_parameters_of_a_class_without_it(module, weight, bias):
    module = adopted(module)
    for p in module.parameters():
        nn.init.normal_(p)
    module.reset_parameters()
    assert bool((getattr(module, module.form.weight) == weight).all())
    assert bias is None or bool((getattr(module, module.form.bias) == bias).all())


# Freezing.


@pytest.mark.parametrize("first", [True, False])
def test_freeze_of_other_names(first):
    model = nn.Sequential(Gamma(), nn.Linear(SIZE, SIZE))
    if first:
        gb.adopt(model)
    change = gb.freeze(model, statistics=False, affine=True)
    assert str(change) == "freeze: 1 changed, 0 left alone\n  0  frozen: scale and shift"
    assert not any(p.requires_grad for p in model[0].parameters())
    assert gb.adopt(model).changed == ([] if first else ["0"])
    assert str(gb.unfreeze(model)) == "unfreeze: 1 changed, 0 left alone\n  0  unfrozen: scale and shift"
    assert all(p.requires_grad for p in model[0].parameters())
    assert "frozen" not in vars(model[0])


def test_freeze_without_any():
    class NoWeights(Norm):
        def __init__(self):
            super().__init__()
            del self.weight

        def forward(self, x):
            return self.unit(x)

    change = gb.freeze(NoWeights(), statistics=False, affine=True)
    assert change.left == {"": "it has no weight or bias that trains"}


# What only some inputs, Parameters or calls show.


class Mended(Norm):
    def forward(self, x):
        return super().forward(torch.nan_to_num(x))


class BoundedWeight(Norm):
    def forward(self, x):
        return self.unit(x) * self.weight.clamp(-5, 5)


class BoundedOutput(Norm):
    def forward(self, x):
        return super().forward(x).clamp(-20, 20)


class BoundedInput(Norm):
    def forward(self, x):
        return super().forward(x.clamp(-65504, 65504))


class Counts(Norm):
    def __init__(self):
        super().__init__()
        self.seen = {"calls": 0}

    def forward(self, x):
        self.seen["calls"] += 1
        return super().forward(x)


class Holder:
    def __init__(self):
        self.calls = [0]


class CountsInAnObject(Norm):
    def __init__(self):
        super().__init__()
        self.holder = Holder()

    def forward(self, x):
        self.holder.calls[0] += 1
        return super().forward(x)


@pytest.mark.parametrize("cls", [Mended, BoundedWeight, BoundedOutput, BoundedInput])
def test_what_only_some_values_show(cls):
    assert "something else" in reason(cls())


@pytest.mark.parametrize("cls", [Counts, CountsInAnObject])
def test_a_state_beside_the_buffers(cls):
    assert reason(cls()) == f"{cls.__name__} changes its attributes when it is called"


def test_an_object_that_stays_as_it_is():
    module = Norm()
    module.config = Holder()
    module.table = {"rope": [1.0, torch.ones(2)]}
    adopted(module)


def test_a_class_attribute_that_changes():
    class Offset(Norm):
        offset = 0.0

        def forward(self, x):
            return self.unit(x) * (self.offset + self.weight)

    assert adopted(Offset()).form.offset == 0
    Offset.offset = 1.0
    assert adopted(Offset()).form.offset == 1


OFFSET = 0.0


def test_a_global_that_changes(monkeypatch):
    class Offset(Norm):
        def forward(self, x):
            return self.unit(x) * (OFFSET + self.weight)

    adopted(Offset())
    monkeypatch.setitem(globals(), "OFFSET", 1.0)
    assert reason(Offset()) == (
        "Offset computes something else now than when another of it was compared: what its forward reads has changed"
    )


# The call.


class Named(Norm):
    def forward(self, hidden_states):
        return super().forward(hidden_states)


def test_the_argument_keeps_its_name():
    module, x = adopted(Named()), torch.randn(2, SIZE)
    assert torch.equal(module(hidden_states=x), module(x))
    assert torch.equal(module(input=x), module(x))
    residual = torch.randn(2, SIZE)
    assert torch.equal(module(hidden_states=x, residual=residual), module(x, residual))
    with pytest.raises(
        TypeError, match=r"Named: expected one input, by position or as hidden_states, .*, got none: pass"
    ):
        module()
    with pytest.raises(TypeError, match=r"Named: expected one input, by position or as hidden_states, .*, got y: pass"):
        module(y=x)


@pytest.mark.parametrize("module", [ChannelsFirst(), LayerNorm2d(SIZE), Norm()])
def test_compiled_with_sizes_that_vary(module):
    mine = adopted(module)
    first = not isinstance(module, Norm)
    compiled = torch.compile(mine, backend="eager", fullgraph=True, dynamic=True)
    for size in (5, 7):
        x = torch.randn((2, SIZE, size, 3) if first else (2, size, 3, SIZE))
        torch.testing.assert_close(compiled(x), mine(x))
        torch.testing.assert_close(compiled(x.transpose(2, 3) if first else x.transpose(1, 2)).shape[0], 2)


@pytest.mark.parametrize("norm", [gb.LayerNorm, gb.RMSNorm])
def test_ours_of_moved_axes_compiles_with_sizes_that_vary(norm):
    module = norm(SIZE)
    compiled = torch.compile(lambda x: module(x.movedim(1, -1)), backend="eager", fullgraph=True, dynamic=True)
    for size in (5, 7):
        x = torch.randn(2, SIZE, size, 3, requires_grad=True)
        torch.testing.assert_close(compiled(x), module(x.movedim(1, -1)))


class RefusedError(RuntimeError):
    pass


def test_hooks_of_all_modules_do_not_run():
    class New(Norm):
        pass

    class NewOfTorch(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x)

    def hook(module, inputs):
        raise RefusedError

    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        adopted(New())
        assert isinstance(adopted(NewOfTorch(SIZE)), gb.LayerNorm)
    finally:
        handle.remove()


def test_a_call_of_its_own():
    class Called(Norm):
        def __call__(self, x):
            return 2 * super().__call__(x)

    assert reason(Called()) == "Called has a __call__ of its own, which would be lost"


def test_under_another_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        adopted(Norm())
        adopted(Gamma())
    finally:
        torch.set_default_dtype(torch.float32)


# Afterwards.


class OtherEpsilon(Norm):
    def __init__(self):
        super().__init__()
        self.variance_epsilon = self.eps
        del self.eps

    def unit(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


class NoEpsilon(Norm):
    def unit(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize("cls", [Norm, OtherEpsilon])
def test_epsilon_is_read_from_its_attribute(cls):
    module, theirs, x = adopted(cls()), cls(), torch.randn(2, SIZE)
    name = "variance_epsilon" if cls is OtherEpsilon else "eps"
    for each in (module, theirs):
        setattr(each, name, 0.1)
    torch.testing.assert_close(module(x), theirs(x))
    assert "eps=0.1" in repr(module)
    assert gb.introspection.norms.norm_of(module).eps == 0.1


def test_epsilon_that_is_no_attribute():
    module, theirs, x = adopted(NoEpsilon()), NoEpsilon(), torch.randn(2, SIZE)
    for each in (module, theirs):
        each.eps = 0.1
    torch.testing.assert_close(module(x), theirs(x))


@pytest.mark.parametrize("cls", [Norm, OnePlus, WithBias])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_release_after_a_cast(cls, dtype):
    model, theirs = nn.Sequential(cls(), nn.Linear(SIZE, SIZE)), nn.Sequential(cls(), nn.Linear(SIZE, SIZE))
    gb.adopt(model)
    model.to(dtype)
    change = gb.release(model)
    assert f"cast to {dtype}" in str(change)
    assert [p.dtype for p in model.parameters()] == [p.dtype for p in theirs.to(dtype).parameters()]
    assert model(torch.randn(2, SIZE, dtype=dtype)).dtype == dtype
    change.undo()
    assert model[0].weight.dtype == torch.float32
    assert model(torch.randn(2, SIZE, dtype=dtype)).dtype == dtype


# The reasons.


class Statistics(nn.Module):
    """A BatchNorm of its running statistics, with γ and β as Parameters or without."""

    def __init__(self, affine):
        super().__init__()
        self.affine = affine
        if affine:
            self.weight, self.bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x):
        weight, bias = (self.weight, self.bias) if self.affine else (None, None)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, weight, bias, False, 0.0, 1e-5)


def test_why_a_frozen_batch_norm_is_left():
    start = "Statistics is a frozen BatchNorm "
    assert reason(Statistics(True)) == start + "whose weight and bias are Parameters, and not buffers"
    assert reason(Statistics(False)) == start + "without weight and bias"


def test_why_a_scale_of_one_value_is_left():
    class Scalar(Norm):
        def __init__(self):
            super().__init__(1)

    assert reason(Scalar()) == "Scalar holds Parameters of one value, and the known forms have one for each channel"


def test_why_a_forward_on_the_instance_is_left():
    class Set(Norm):
        def __init__(self):
            super().__init__()
            self.forward = self.compute

        def compute(self, x):
            return self.unit(x) * self.weight

    assert reason(Set()) == "its forward is set on the instance, and would still run"
