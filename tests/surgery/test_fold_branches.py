"""fold merges parallel branches: right for every geometry, left alone where they are more than added."""

import copy
import importlib.util

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.zoo import load_timm, outputs, randomize_norms, relative_error
from torch import nn

import gammabeta as gb
from gammabeta.surgery.folding import compare
from gammabeta.surgery.folding.branches import Zero

# float64's spacing is 2e-16; sums of some hundred products stay below this.
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


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def branch(kernel, channels=4, out=4, axes=2, **options):
    """A convolution that keeps the size at stride 1, and its norm."""
    options.setdefault("padding", (kernel - 1) // 2 * options.get("dilation", 1))
    conv = CONVOLUTIONS[axes](channels, out, kernel, bias=options.pop("bias", False), **options)
    return nn.Sequential(conv, NORMS[axes](out))


def added(net, x):
    return torch.relu(net.a(x) + net.b(x) + net.c(x))


def repvgg(axes=2, **options):
    return Net(added, a=branch(3, axes=axes, **options), b=branch(1, axes=axes, **options), c=NORMS[axes](4))


def folded(model, *shape, **options):
    """Fold on one input; compare on another, and on one of other sizes."""
    torch.manual_seed(0)
    model = model.double().eval()
    randomize_norms(model)
    result = gb.fold(model, torch.randn(shape, dtype=torch.float64), **options)
    for other in (shape, (shape[0] + 1, shape[1], *(size + 3 for size in shape[2:]))):
        x = torch.randn(other, dtype=torch.float64)
        assert relative_error(outputs(result.model, x), outputs(model, x)) < EXACT
    return result


def kinds(result):
    found = {}
    for module in result.model.modules():
        if not any(True for _ in module.children()):
            found[type(module).__name__] = found.get(type(module).__name__, 0) + 1
    found.pop("Identity", None)
    return found


class RepVGG(nn.Module):
    """As TorchScript wants it: a forward of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = branch(3), branch(1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.a(x) + self.b(x)
        y += self.c(x)
        return torch.relu(y)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_three_by_three_one_by_one_and_identity_become_one_convolution(axes, groups):
    result = folded(repvgg(axes, groups=groups), 2, 4, *(6,) * axes)
    assert kinds(result) == {f"Conv{axes}d": 1, "Zero": 2}
    assert [str(site) for site in result.sites] == ["folded into a.0", "folded into b.0", "folded into a.0 beside it"]
    (branches,) = result.branches
    assert branches.layers == ("a.0", "b.0", "c")
    assert branches.kernel == (3,) * axes
    assert f"  a.0  one convolution of {'×'.join('3' * axes)}, merged with b.0, c" in str(result)


def test_a_block_of_stride_2_has_no_identity():
    model = Net(
        lambda net, x: net.a(x) + net.b(x), a=branch(1, out=6, stride=2), b=branch(3, out=6, stride=2, bias=True)
    )
    result = folded(model, 2, 4, 7, 7)
    assert kinds(result) == {"Conv2d": 1, "Zero": 1}
    assert result.model.a[0].kernel_size == (3, 3)


def test_what_a_zero_is_added_to_is_the_result_only_where_nothing_else_reads_it():
    """The sum with the input is made by an addition of a zero: if it were the input, the activation would change it."""

    def run(net, x):
        x = x.sin()
        first = net.a(x)
        second = x + net.b(x)
        second.relu_()
        return (first + net.c(x)) * x + second

    result = folded(Net(run, a=branch(3), b=branch(1), c=branch(1)), 2, 4, 5, 5)
    assert [each.layers for each in result.branches] == [("a.0", "c.0")]

    def sums(net, x):
        y = x.sin()
        return (net.a(y) + (y + net.b(y))) + y

    result = folded(Net(sums, a=branch(3), b=branch(1)), 2, 4, 5, 5)
    (branches,) = result.branches
    assert branches.vanishing == frozenset()
    assert kinds(result) == {"Conv2d": 1, "Zero": 1}
    (branches,) = folded(repvgg(), 2, 4, 5, 5).branches
    assert branches.vanishing == {"b.0", "c"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_the_merged_model_can_be_exported_scripted_traced_and_transformed():
    model = nn.Sequential(RepVGG(), RepVGG()).eval()
    randomize_norms(model)
    x = torch.randn(3, 4, 5, 5)
    expected = outputs(model, x)
    new = gb.fold(model, x).model
    for other in (
        torch.export.export(new, (x,)).module(),
        torch.jit.script(new),
        torch.jit.trace(new, x),
        torch.compile(new, backend="aot_eager"),
        torch.fx.symbolic_trace(new),
        copy.deepcopy(new),
        torch.vmap(lambda each: new(each[None])[0]),
    ):
        assert relative_error(outputs(other, x), expected) < 1e-5
    x.requires_grad_()
    new(x).sum().backward()
    mine, x.grad = x.grad, None
    model(x).sum().backward()
    torch.testing.assert_close(mine, x.grad, rtol=1e-4, atol=1e-5)


def test_additions_in_place_and_from_a_number_on_are_sums_too():
    def run(net, x):
        out = 0
        for each in net.all:
            out += each(x)
        out += net.skip(x)
        return out.relu_()

    model = Net(
        run, all=nn.ModuleList([branch(3, groups=4) for _ in range(3)] + [branch(1, groups=4)]), skip=NORMS[2](4)
    )
    result = folded(model, 2, 4, 5, 5)
    assert kinds(result) == {"Conv2d": 1, "Zero": 4}
    assert folded(Net(lambda net, x: sum(each(x) for each in net.all), all=model.all), 2, 4, 5, 5).branches


def test_asymmetric_kernels_go_into_the_square_one():
    square = branch(3)
    tall = nn.Sequential(nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), nn.BatchNorm2d(4))
    wide = nn.Sequential(nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), nn.BatchNorm2d(4))
    result = folded(Net(added, a=tall, b=wide, c=square), 2, 4, 6, 6)
    assert kinds(result) == {"Conv2d": 1, "Zero": 2}


def test_other_terms_of_the_sum_stay():
    model = Net(lambda net, x: x + net.a(x) + net.other(x.sin()) + net.b(x), a=branch(3), b=branch(1), other=branch(3))
    result = folded(model, 2, 4, 5, 5)
    assert [each.layers for each in result.branches] == [("a.0", "b.0")]
    assert kinds(result) == {"Conv2d": 2, "Zero": 1}


def shared():
    model = Net(lambda net, x: net.a(x) + net.b(x), a=branch(1), b=branch(1))
    model.b[0].weight = model.a[0].weight
    return model


def hooked():
    model = repvgg()
    model.a.register_forward_hook(lambda module, args, out: None)
    model.b.register_forward_hook(lambda module, args, out: None)
    model.c.register_forward_hook(lambda module, args, out: None)
    return model


def two(run, a=None, b=None):
    return Net(run, a=a or branch(3), b=b or branch(1))


APART = {
    "subtracted": lambda: two(lambda net, x: net.a(x) - net.b(x)),
    "multiplied": lambda: two(lambda net, x: net.a(x) * net.b(x)),
    "of other inputs": lambda: two(lambda net, x: net.a(x) + net.b(x.sin())),
    "of other views": lambda: two(lambda net, x: net.a(x) + net.b(x.transpose(2, 3))),
    "read elsewhere": lambda: two(lambda net, x: (y := net.b(x)).sin() + (net.a(x) + y)),
    "given out": lambda: two(lambda net, x: (net.a(x) + (y := net.b(x)), y)),
    "activated": lambda: two(lambda net, x: net.a(x).relu() + net.b(x)),
    "added twice": lambda: two(lambda net, x: (y := net.a(x)) + y),
    "broadcast": lambda: two(lambda net, x: net.a(x) + net.b(x.mean((2, 3), keepdim=True))),
    "reflecting": lambda: two(lambda net, x: net.a(x) + net.b(x), a=branch(3, padding_mode="reflect")),
    "of other groups": lambda: two(lambda net, x: net.a(x) + net.b(x), b=branch(1, groups=2)),
    "shared": shared,
    "hooked": hooked,
    "tall and wide": lambda: two(
        lambda net, x: net.a(x) + net.b(x),
        nn.Sequential(nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), nn.BatchNorm2d(4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", APART)
def test_branches_that_are_not_only_added_stay_apart(case):
    result = folded(APART[case](), 2, 4, 6, 6)
    assert result.branches == []
    assert "Zero" not in kinds(result)


def test_an_addition_with_a_factor_is_put_back():
    result = folded(two(lambda net, x: torch.add(net.a(x), net.b(x), alpha=2)), 2, 4, 5, 5)
    (branches,) = result.branches
    assert branches.reason.startswith("with it, the output is off by ")
    assert "  a.0  not merged with b.0: with it, the output is off by " in str(result)
    assert kinds(result) == {"Conv2d": 2}


def test_where_chooses_the_norms_whose_branches_are_merged():
    model = nn.Sequential(repvgg(), repvgg())
    result = folded(model, 2, 4, 6, 6, where="1.*")
    assert [each.layers[0] for each in result.branches] == ["1.a.0"]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in result.model[0].modules()) == 3


def test_branches_of_16_bits_are_put_back_where_rounding_shows(monkeypatch):
    model = nn.Sequential(repvgg(), repvgg()).eval()
    randomize_norms(model)
    x = torch.randn(2, 4, 6, 6)
    off = gb.fold(model, x).error
    monkeypatch.setitem(compare.TOLERANCES, torch.float32, off / 2)
    result = gb.fold(model, x)
    assert result.error <= off / 2
    assert relative_error(outputs(result.model, x), outputs(model, x)) <= off / 2


# Of each axis: kernel, padding and dilation of the larger convolution; where in it the other's taps begin, how far
# apart they lie, and how many there are.
AXIS = st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2),
                 st.integers(1, 3))  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(axes=st.tuples(AXIS, AXIS), stride=st.integers(1, 2), groups=st.sampled_from([1, 2]), seed=st.integers(0, 100))
def test_any_geometry_is_merged_rightly_or_left(axes, stride, groups, seed):
    def build(geometry):
        kernel, padding, dilation = zip(*geometry, strict=True)
        options = {"padding": padding, "dilation": dilation, "stride": stride, "groups": groups}
        return nn.Sequential(nn.Conv2d(4, 4, kernel, **options), nn.BatchNorm2d(4))

    inside = [(k, P - D * first, D * step) for _, P, D, first, step, k in axes]
    assume(all(padding >= 0 for _, padding, _ in inside))
    fits = all(2 * first + step * (k - 1) == K - 1 for K, _, _, first, step, k in axes)
    torch.manual_seed(seed)
    model = (
        Net(lambda net, x: net.a(x) + net.b(x), a=build(inside), b=build([axis[:3] for axis in axes])).double().eval()
    )
    x = torch.randn(2, 4, 13, 13, dtype=torch.float64)
    if fits:
        assert model.a(x).shape == model.b(x).shape
    else:
        assume(model.a(x).shape == model.b(x).shape)
    result = gb.fold(model, x)
    assert bool(result.branches) == fits
    assert all(not branches.reason for branches in result.branches)
    for size in (13, 14, 15) if fits else (13,):
        other = torch.randn(1, 4, size, size, dtype=torch.float64)
        assert relative_error(outputs(result.model, other), outputs(model, other)) < EXACT


@pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="timm is not installed")
class TestTimm:
    def test_repvgg_becomes_what_reparameterize_makes(self):
        timm = load_timm()
        torch.manual_seed(0)
        model = timm.create_model("repvgg_a0").eval()
        randomize_norms(model)
        x = torch.randn(2, 3, 64, 64)
        result = gb.fold(model, x)
        theirs = timm.utils.reparameterize_model(model)
        counts = [sum(type(m) is nn.Conv2d for m in each.modules()) for each in (result.model, theirs)]
        assert counts[0] == counts[1] == 22
        assert len(result.branches) == 22
        assert not any("Norm" in type(module).__name__ for module in result.model.modules() if type(module) is not Zero
                       and hasattr(module, "running_var"))  # fmt: skip
        y = torch.randn(1, 3, 96, 96)
        expected = outputs(model, y)
        # float32, 22 layers with one rounding more or less.
        assert relative_error(outputs(result.model, y), expected) < 1e-5
        assert relative_error(outputs(theirs, y), expected) < 1e-5
        reparameterized = [m for m in theirs.modules() if type(m) is nn.Conv2d]
        for mine, other in zip(
            (m for m in result.model.modules() if type(m) is nn.Conv2d), reparameterized, strict=True
        ):
            torch.testing.assert_close(mine.weight, other.weight, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(mine.bias, other.bias, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("channels", "stride"), [(16, 1), (24, 2)])
    @pytest.mark.parametrize("group_size", [0, 1])
    def test_a_block_of_mobileone_does_too(self, channels, stride, group_size):
        load_timm()
        from timm.models.byobnet import LayerFn, MobileOneBlock

        if group_size and channels != 16:
            channels = 16
        torch.manual_seed(0)
        block = MobileOneBlock(16, channels, 3, stride, group_size=group_size, num_conv_branches=3, layers=LayerFn())
        model = nn.Sequential(block).eval()
        randomize_norms(model)
        result = gb.fold(model, torch.randn(2, 16, 9, 9))
        (branches,) = result.branches
        assert not branches.reason
        assert sum(type(m) is nn.Conv2d for m in result.model.modules()) == 1
        y = torch.randn(1, 16, 12, 12)
        expected = outputs(model, y)
        assert relative_error(outputs(result.model, y), expected) < 1e-5
        block.reparameterize()
        (mine,) = (m for m in result.model.modules() if type(m) is nn.Conv2d)
        torch.testing.assert_close(mine.weight, block.reparam_conv.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.bias, block.reparam_conv.bias, rtol=1e-5, atol=1e-5)
