"""fold: right for every layer and direction, refused where it would be wrong, and verified on other inputs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.zoo import outputs, randomize_norms, relative_error
from torch import nn
from torch.nn.utils import parametrizations

import gammabeta as gb
from gammabeta.surgery.folding import compare

# float64's spacing is 2e-16; two layers of some hundred products each stay below this.
EXACT = 1e-12


class Net(nn.Module):
    """Any modules with any forward."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


class NormAct(nn.BatchNorm2d):
    def __init__(self, channels, act):
        super().__init__(channels)
        self.act = act

    def forward(self, x):
        return self.act(
            F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0, self.eps)
        )


class FunctionalAct(nn.BatchNorm2d):
    def forward(self, x):
        return F.hardswish(super().forward(x))


class Frozen(nn.Module):
    """A frozen BatchNorm as in DETR: four buffers, and ε only in the forward."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        w, b, m, v = (t.view(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_mean, self.running_var))
        return (x - m) * (v + 1e-3).rsqrt() * w + b


def ready(model):
    model = model.double().eval()
    randomize_norms(model)
    return model


def folded(model, *shape, **options):
    """Fold on one input and compare the result with the original on another; both models stay unchanged."""
    generator = torch.Generator().manual_seed(3)
    x, other = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())
    result = gb.fold(model, x, **options)
    assert list(model.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert relative_error(outputs(result.model, other), outputs(model, other)) < EXACT
    assert result.error < EXACT
    return result


AFTER = {
    "conv1d": (nn.Conv1d(4, 6, 3, groups=2, padding=1), nn.BatchNorm1d(6), (2, 4, 7)),
    "conv2d": (nn.Conv2d(4, 6, 3, bias=False, stride=2), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8, affine=False), (2, 4, 5, 5)),
    "conv3d": (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), (2, 2, 4, 4, 4)),
    "transposed 1d grouped": (nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (2, 4, 7)),
    "transposed 2d grouped": (nn.ConvTranspose2d(6, 9, 3, groups=3, bias=False), nn.BatchNorm2d(9), (2, 6, 5, 5)),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), nn.BatchNorm3d(3), (2, 2, 3, 3, 3)),
    "linear": (nn.Linear(5, 6), nn.BatchNorm1d(6), (4, 5)),
    "linear without bias": (nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), (4, 5)),
    "instance norm": (nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (2, 3, 5, 5)),
    "ours with an activation": (nn.Conv2d(3, 4, 1), gb.BatchNorm2d(4, activation="silu"), (2, 3, 5, 5)),
    "norm and module": (nn.Conv2d(3, 4, 1), NormAct(4, nn.GELU()), (2, 3, 5, 5)),
    "norm and function": (nn.Conv2d(3, 4, 1), FunctionalAct(4), (2, 3, 5, 5)),
    "frozen": (nn.Conv2d(3, 4, 1), Frozen(4), (2, 3, 5, 5)),
}


@pytest.mark.parametrize("case", AFTER)
def test_a_norm_goes_into_the_layer_before_it(case):
    layer, norm, shape = copy.deepcopy(AFTER[case])
    result = folded(ready(nn.Sequential(layer, norm)), *shape)
    assert [str(site) for site in result.sites] == ["folded into 0"]
    assert not any(hasattr(module, "running_var") for module in result.model.modules())


BEFORE = {
    "conv": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "conv that reflects": (nn.BatchNorm1d(4), nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 5)),
    "linear": (nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False), (5, 4)),
}


@pytest.mark.parametrize("case", BEFORE)
def test_a_norm_that_no_layer_precedes_goes_into_the_one_behind(case):
    norm, layer, shape = copy.deepcopy(BEFORE[case])
    result = folded(ready(nn.Sequential(nn.Tanh(), norm, layer)), *shape)
    assert [str(site) for site in result.sites] == ["folded into 2 behind it"]


def test_a_layer_takes_up_a_norm_on_either_side():
    model = nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    result = folded(ready(model), 2, 3, 5, 5)
    assert [site.layer for site in result.folded] == ["2", "2"]


def test_zero_padding_and_transposing_leave_a_multiply_add():
    padded = folded(ready(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1))), 2, 3, 5, 5)
    assert str(padded.sites[0]) == (
        "one multiply-add: its input is made by aten.tanh in 0; 2 behind it pads with zeros, which the norm does not "
        "shift"
    )
    transposed = folded(ready(nn.Sequential(nn.Tanh(), nn.BatchNorm1d(3), nn.ConvTranspose1d(3, 4, 3))), 2, 3, 5)
    assert transposed.sites[0].way == "alone"
    assert "is transposed" in transposed.sites[0].reason


def test_views_and_copies_that_keep_the_channels_are_followed():
    def flatten(net, x):
        y = net.linear(x)
        return net.norm(y.flatten(0, 1)).reshape_as(y)

    def copied(net, x):
        return net.norm(net.linear(x).transpose(1, 2).contiguous())

    for run in (flatten, copied):
        result = folded(ready(Net(run, linear=nn.Linear(5, 6), norm=nn.BatchNorm1d(6))), 3, 4, 5)
        assert [site.layer for site in result.sites] == ["linear"]


def test_channels_on_another_axis_are_not_taken_for_the_layer_s():
    # There are as many positions as features, so only the axis distinguishes them.
    model = ready(Net(lambda net, x: net.norm(net.linear(x)), linear=nn.Linear(5, 6), norm=nn.BatchNorm1d(6)))
    assert folded(model, 3, 6, 5).sites[0].way == "alone"


def test_a_residual_of_ours_stays():
    model = ready(
        Net(lambda net, x: net.norm(net.conv(x), x), conv=nn.Conv2d(4, 4, 1), norm=gb.BatchNorm2d(4, activation="relu"))
    )
    assert folded(model, 2, 4, 3, 3).sites[0].layer == "conv"


def conv_norm(run, **more):
    return Net(run, conv=nn.Conv1d(4, 4, 1), norm=nn.BatchNorm1d(4), **more)


def hooked(name):
    model = conv_norm(lambda net, x: net.norm(net.conv(x)))
    getattr(model, name).register_forward_hook(lambda module, args, out: None)
    return model


def parametrized():
    model = conv_norm(lambda net, x: net.norm(net.conv(x)))
    parametrizations.weight_norm(model.conv)
    return model


def tied():
    model = conv_norm(lambda net, x: net.other(net.norm(net.conv(x))), other=nn.Conv1d(4, 4, 1))
    model.other.weight = model.conv.weight
    return model


def training():
    model = ready(conv_norm(lambda net, x: net.norm(net.conv(x))))
    model.norm.train()
    return model


REFUSED = {
    "conv called twice": (
        lambda: conv_norm(lambda net, x: net.norm(net.conv(net.conv(x)))), "conv is called 2 times in a forward"
    ),
    "norm called twice": (
        lambda: conv_norm(lambda net, x: net.norm(net.norm(net.conv(x)))), "it is called 2 times in a forward"
    ),
    "output read twice": (
        lambda: conv_norm(lambda net, x: net.norm(y := net.conv(x)) + y.sin()),
        "the output of conv is also read by aten.sin in the model",
    ),
    "output given": (
        lambda: conv_norm(lambda net, x: (y := net.conv(x), net.norm(y))),
        "the output of conv is also an output of the model"
    ),
    "hook on conv": (lambda: hooked("conv"), "conv has hooks, which would see or change something else"),
    "hook on norm": (lambda: hooked("norm"), "it has hooks, which would see or change something else"),
    "parametrized": (
        parametrized, "conv is parametrized: torch.nn.utils.parametrize.remove_parametrizations first"
    ),
    "tied": (tied, "conv.weight is shared with other"),
    "weight read elsewhere": (
        lambda: conv_norm(lambda net, x: net.norm(net.conv(x)) * net.conv.weight.std()),
        "conv.weight is also read by aten.std in the model",
    ),
    "no running statistics": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4, track_running_stats=False)),
        "it has no running statistics: its output depends on the batch",
    ),
    "not called": (lambda: conv_norm(lambda net, x: net.conv(x)), "it was not called on the example inputs"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_safe_is_refused_with_its_reason(case):
    build, reason = REFUSED[case]
    result = folded(ready(build()), 2, 4, 5)
    assert [(site.way, site.reason) for site in result.sites] == [("refused", reason)]


def test_training_mode_is_refused():
    result = gb.fold(training(), torch.randn(3, 4, 5, dtype=torch.float64))
    assert result.sites[0].reason == "it is in training mode: call model.eval() first"


def test_a_site_that_comes_out_wrong_is_put_back_and_the_others_stay():
    # A forward that reads the norm's weight raises after the fold, because the norm is gone.
    def run(net, x):
        return net.b(net.second(net.a(net.first(x)))) + net.b.weight.sum()

    model = ready(
        Net(run, first=nn.Conv1d(4, 4, 1), a=nn.BatchNorm1d(4), second=nn.Conv1d(4, 4, 1), b=nn.BatchNorm1d(4))
    )
    result = folded(model, 2, 4, 5)
    ways = {site.norm: site for site in result.sites}
    assert ways["a"].layer == "first"
    assert ways["b"].way == "refused"
    assert "AttributeError: 'Identity' object has no attribute 'weight'" in ways["b"].reason
    assert isinstance(result.model.b, nn.BatchNorm1d)


def test_a_layer_of_16_bits_is_put_back_where_rounding_shows(monkeypatch):
    monkeypatch.setitem(compare.TOLERANCES, torch.bfloat16, 1e-9)
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).bfloat16()
    result = gb.fold(model, torch.randn(2, 3, 5, 5).bfloat16())
    assert result.sites[0].way == "refused"
    assert result.sites[0].error > 1e-9
    assert "more than 1e-09" in result.sites[0].reason


def test_where_chooses_and_unknown_names_are_said():
    model = ready(nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)))
    result = folded(model, 2, 4, 5, where="3")
    assert [site.norm for site in result.sites] == ["3"]
    assert isinstance(result.model[1], nn.BatchNorm1d)
    with pytest.raises(ValueError, match="expected where to match norms, got 'bn', which matches none"):
        gb.fold(model, torch.randn(2, 4, 5).double(), where="bn")


def test_the_report_tells_sites_error_and_time():
    model = ready(nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)))
    text = str(folded(model, 2, 4, 5))
    assert text.startswith("fold: 1 folded, 0 as one multiply-add, 0 refused\n  largest relative error ")
    assert "on 3 inputs (tolerance 1e-10)" in text
    assert text.endswith("  1  folded into 0")


def test_a_compiled_model_is_refused():
    model = torch.compile(ready(nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4))), backend="eager")
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole text is compared
        gb.fold(model, torch.randn(2, 4, 5).double())
    assert str(raised.value) == (
        "fold: expected an eager model, got one from torch.compile, whose graphs would go on with the norms: fold "
        "model._orig_mod, then compile what comes out."
    )


@pytest.mark.parametrize("kind", ["adopted", "folded"])
def test_onnxruntime_gives_the_same(kind, tmp_path):
    import onnxruntime

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Tanh()
    ).eval()
    randomize_norms(model)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = outputs(model, x)[0]
    if kind == "adopted":
        gb.adopt(model)
    else:
        model = gb.fold(model, x).model
    file = tmp_path / "net.onnx"
    torch.onnx.export(model, (x,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    # float32, a few operations in another order.
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5)


def summed(pairs, seed, dtype=torch.float32):
    """Pairs of a convolution and a BatchNorm, summed in float64: each folding adds its rounding to the output."""

    def run(net, x):
        return sum(getattr(net, f"norm{i}")(getattr(net, f"conv{i}")(x)).double() for i in range(pairs))

    torch.manual_seed(seed)
    model = Net(
        run,
        **{f"conv{i}": nn.Conv2d(6, 6, 3, padding=1) for i in range(pairs)},
        **{f"norm{i}": nn.BatchNorm2d(6) for i in range(pairs)},
    ).eval()
    randomize_norms(model, seed)
    return model.to(dtype)


def check_that_it_is_settled(model, x, result):
    """What was refused is there as it was, what was folded is gone, and the whole is within the tolerance."""
    expected = outputs(model, x)
    assert result.error <= result.tolerance
    assert relative_error(outputs(result.model, x), expected) <= result.tolerance
    for site in result.sites:
        here, original = result.model.get_submodule(site.norm), model.get_submodule(site.norm)
        assert hasattr(here, "running_var") == (site.way == "refused")
        if site.way == "refused":
            assert type(here) is type(original)
            assert site.error > result.tolerance
    # A layer whose norm was put back has its own weights again, to the bit.
    absorbed = {site.layer for site in result.folded}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name not in absorbed:
            same = result.model.get_submodule(name)
            assert torch.equal(same.weight, module.weight)
            assert torch.equal(same.bias, module.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_where_single_sites_are_within_the_tolerance_and_all_are_not_some_stay_folded(share, dtype, monkeypatch):
    model = summed(16, 3, dtype)
    x = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    monkeypatch.setitem(compare.TOLERANCES, dtype, 1.0)
    whole = gb.fold(model, x).error
    worst = max(gb.fold(model, x, where=f"norm{i}").error for i in range(16))
    assert worst < whole, "the error of all sites should exceed that of each"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setitem(compare.TOLERANCES, dtype, worst + share * (whole - worst))
    result = gb.fold(model, x)
    assert result.folded
    assert result.refused
    assert all(" together with " in site.reason for site in result.refused)
    check_that_it_is_settled(model, x, result)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@settings(max_examples=15, deadline=None)
@given(exponent=st.floats(-9, -5), seed=st.integers(0, 50), pairs=st.integers(1, 8))
def test_whatever_the_tolerance_is_the_result_is_within_it(exponent, seed, pairs):
    model = summed(pairs, seed)
    x = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(compare.TOLERANCES, torch.float32, 10**exponent)
        result = gb.fold(model, x)
    assert len(result.sites) == pairs
    check_that_it_is_settled(model, x, result)
