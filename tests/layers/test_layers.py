"""The layers are drop-in for torch.nn's, and differ where docs/conventions.md says so."""

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import gammabeta as gb

# (name, arguments, input shape) for both libraries.
LAYERS = {
    "batch 1d": ("BatchNorm1d", (6,), (4, 6)),
    "batch 1d positions": ("BatchNorm1d", (6,), (4, 6, 5)),
    "batch 2d": ("BatchNorm2d", (6,), (4, 6, 5, 3)),
    "batch 3d": ("BatchNorm3d", (6,), (4, 6, 2, 3, 2)),
    "layer": ("LayerNorm", (6,), (4, 5, 6)),
    "layer two axes": ("LayerNorm", ((5, 6),), (4, 5, 6)),
    "rms": ("RMSNorm", (6,), (4, 5, 6)),
    "group": ("GroupNorm", (3, 6), (4, 6, 5)),
    "instance 1d": ("InstanceNorm1d", (6,), (4, 6, 5)),
    "instance 2d": ("InstanceNorm2d", (6,), (4, 6, 5, 3)),
    "instance 3d": ("InstanceNorm3d", (6,), (4, 6, 2, 3, 2)),
    "instance unbatched": ("InstanceNorm2d", (6,), (6, 5, 3)),
}
RUNNING = [case for case in LAYERS if case.startswith(("batch", "instance"))]
OPTIONS = {
    "batch": [
        {},
        {"affine": False},
        {"bias": False},
        {"momentum": None},
        {"momentum": 0.7},
        {"track_running_stats": False},
    ],
    "instance": [{}, {"affine": True}, {"track_running_stats": True}, {"affine": True, "bias": False, "momentum": 0.3}],
    "layer": [{}, {"elementwise_affine": False}, {"bias": False}, {"eps": 1e-2}],
    "rms": [{}, {"elementwise_affine": False}, {"eps": 1e-2}],
    "group": [{}, {"affine": False}, {"bias": False}, {"eps": 1e-2}],
}
CASES = [(case, options) for case in LAYERS for options in OPTIONS[case.split()[0]]]


def pair(case, **options):
    """Make our layer and torch's with the same random parameters and running statistics, and an input."""
    name, arguments, shape = LAYERS[case]
    theirs, ours = getattr(nn, name)(*arguments, **options), getattr(gb, name)(*arguments, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(generator=generator)
        if getattr(theirs, "running_mean", None) is not None:
            theirs.running_mean.normal_(generator=generator)
            theirs.running_var.uniform_(0.5, 2, generator=generator)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, torch.randn(shape, generator=generator) * 2 + 1


@pytest.mark.parametrize(("case", "options"), CASES)
class TestDropIn:
    def test_trains_and_evaluates_as_torch_s(self, case, options, route):
        ours, theirs, x = pair(case, **options)
        assert isinstance(ours, type(theirs))
        for training in (True, True, False):
            ours.train(training)
            theirs.train(training)
            y, expected = ours(x), theirs(x)
            torch.testing.assert_close(y, expected, rtol=2e-6, atol=5e-6)
            if y.requires_grad:
                direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
                (y * direction).sum().backward()
                (expected * direction).sum().backward()
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-5, msg=name)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-6, msg=name)

    def test_state_dict_goes_both_ways(self, case, options):
        ours, theirs, _ = pair(case, **options)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict(), strict=True)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]

    def test_repr_is_torch_s_and_says_whose_it_is(self, case, options):
        ours, theirs, _ = pair(case, **options)
        assert repr(ours) == repr(theirs)[:-1] + ", gammabeta)"

    def test_copies_and_pickles(self, case, options):
        ours, _, x = pair(case, **options)
        ours.eval()
        buffer = io.BytesIO()
        torch.save(ours, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)):
            assert torch.equal(other(x), ours(x))
            assert repr(other) == repr(ours)

    def test_device_and_dtype(self, case, options):
        name, arguments, shape = LAYERS[case]
        ours = getattr(gb, name)(*arguments, **options, device="meta", dtype=torch.float64)
        floating = [t for t in (*ours.parameters(), *ours.buffers()) if t.is_floating_point()]
        assert all(t.device.type == "meta" and t.dtype == torch.float64 for t in floating)
        assert ours(torch.empty(shape, device="meta", dtype=torch.float64)).shape == shape


@pytest.mark.parametrize(
    "name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm1d"]
)
def test_constructors_begin_as_torch_s_do(name):
    theirs = list(inspect.signature(getattr(nn, name)).parameters.values())
    ours = list(inspect.signature(getattr(gb, name)).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_a_size_may_be_of_any_integral_type(name):
    layer = getattr(gb, name)(np.int64(6))
    assert repr(layer) == repr(getattr(nn, name)(6))[:-1] + ", gammabeta)"
    assert torch.equal(layer(torch.ones(2, 6)), getattr(gb, name)(6)(torch.ones(2, 6)))


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu"])
def test_residual_and_activation_are_what_torch_composes(case, activation, route):
    ours, theirs, x = pair(case)
    ours.activation, ours.activation_slope = activation, 0.2
    composed = {
        "relu": torch.relu, "relu6": nn.ReLU6(), "leaky_relu": nn.LeakyReLU(0.2), "silu": nn.SiLU(),
        "hardswish": nn.Hardswish(), "gelu": nn.GELU(),
    }[activation]  # fmt: skip
    residual = torch.randn(x.shape) * 3
    torch.testing.assert_close(ours(x, residual), composed(theirs(x) + residual), rtol=1e-5, atol=1e-5)
    slope = ", activation_slope=0.2" if activation == "leaky_relu" else ""
    assert repr(ours) == repr(theirs)[:-1] + f", activation={activation}{slope}, gammabeta)"


class TestFloat32State:
    @pytest.mark.parametrize("case", LAYERS)
    @pytest.mark.parametrize("cast", ["half", "bfloat16", "to"])
    def test_a_cast_down_keeps_float32_exactly(self, case, cast, route):
        track = {"track_running_stats": True, "affine": True} if case.startswith("instance") else {}
        ours, _, x = pair(case, **track)
        before = {name: value.clone() for name, value in ours.state_dict().items()}
        identity = {name: id(p) for name, p in ours.named_parameters()}
        low = torch.float16 if cast == "half" else torch.bfloat16
        ours = {"half": ours.half, "bfloat16": ours.bfloat16, "to": lambda: ours.to(torch.bfloat16)}[cast]()
        for name, value in ours.state_dict().items():
            assert torch.equal(value, before[name]), name
            assert value.dtype == before[name].dtype, name
        assert {name: id(p) for name, p in ours.named_parameters()} == identity
        y = ours(x.to(low))
        assert y.dtype == low
        (y.float() * torch.randn(x.shape)).sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in ours.parameters())

    def test_double_and_back(self):
        layer = gb.BatchNorm1d(3).double()
        assert layer.running_var.dtype == layer.weight.dtype == torch.float64
        assert layer.half().running_var.dtype == layer.weight.dtype == torch.float32

    def test_a_variance_beyond_float16_survives(self):
        layer = gb.BatchNorm1d(2)
        layer.running_var.fill_(1e6)
        assert layer.half().running_var.tolist() == [1e6, 1e6]
        theirs = nn.BatchNorm1d(2)
        theirs.running_var.fill_(1e6)
        assert theirs.half().running_var.tolist() == [float("inf")] * 2

    def test_what_was_asked_for_in_16_bits_stays(self, route):
        layer = gb.BatchNorm1d(3, dtype=torch.bfloat16)
        assert layer.to("cpu").weight.dtype == torch.bfloat16
        x = torch.randn(64, 3)
        torch.testing.assert_close(layer(x), nn.BatchNorm1d(3)(x), rtol=1e-5, atol=1e-5)
        assert layer.running_var.dtype == torch.bfloat16
        torch.testing.assert_close(layer.running_var.float(), 0.9 + 0.1 * x.var(0), rtol=2**-8, atol=0)

    def test_gradients_and_meta_follow(self):
        layer = gb.LayerNorm(4)
        layer(torch.randn(2, 4)).sum().backward()
        assert layer.bfloat16().weight.grad.dtype == torch.float32
        empty = gb.BatchNorm1d(4, device="meta").half().to_empty(device="cpu")
        assert empty.running_var.dtype == torch.float32
        assert empty.running_var.device.type == "cpu"


@pytest.mark.parametrize("case", RUNNING)
def test_reset_and_eval_without_tracking(case):
    options = {"track_running_stats": True} if case.startswith("instance") else {}
    ours, theirs, x = pair(case, **options)
    ours(x)
    ours.reset_running_stats()
    theirs.reset_running_stats()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    untracked, other, x = pair(case, track_running_stats=False)
    torch.testing.assert_close(untracked.eval()(x), other.eval()(x))


def test_loads_a_checkpoint_from_before_batches_were_counted():
    old = {
        "weight": torch.randn(3),
        "bias": torch.randn(3),
        "running_mean": torch.randn(3),
        "running_var": torch.rand(3),
    }
    layer = gb.BatchNorm2d(3)
    layer.load_state_dict(old)
    assert torch.equal(layer.running_mean, old["running_mean"])


def test_tracking_switched_off_afterwards_is_as_in_torch(route):
    ours, theirs, x = pair("batch 2d")
    for layer in (ours, theirs):
        layer.track_running_stats = False
    torch.testing.assert_close(ours(x), theirs(x), rtol=2e-6, atol=5e-6)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=2e-6, atol=5e-6)
    assert torch.equal(ours.running_mean, theirs.running_mean)


class TestOtherDevices:
    """What torch's op gets where we have no kernel, seen on the meta device, which stands for any but the CPU."""

    @pytest.fixture
    def handed(self, monkeypatch):
        seen = []
        for name in ("batch_norm", "layer_norm", "group_norm", "rms_norm"):
            op = getattr(torch, name)

            def spy(*args, op=op, **kwargs):
                seen.append([a.dtype for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)])
                return op(*args, **kwargs)

            monkeypatch.setattr(torch, name, spy)
        return seen

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
    def test_batch_norm_keeps_16_bit_inputs_beside_float32_parameters(self, handed, training, parameters):
        layer = gb.BatchNorm2d(6, device="meta", dtype=parameters).train(training)
        y = layer(torch.empty(4, 6, 3, 3, device="meta", dtype=torch.bfloat16))
        assert y.dtype == torch.bfloat16
        assert handed == [[torch.bfloat16, *[torch.float32] * 4]]

    def test_the_others_run_in_one_dtype(self, handed):
        x = torch.empty(4, 6, device="meta", dtype=torch.bfloat16)
        assert gb.LayerNorm(6, device="meta")(x).dtype == torch.bfloat16
        assert gb.LayerNorm(6, device="meta", dtype=torch.bfloat16)(x).dtype == torch.bfloat16
        assert gb.GroupNorm(2, 6, device="meta")(x).dtype == torch.bfloat16
        assert handed == [[torch.float32] * 3, [torch.bfloat16] * 3, [torch.float32] * 3]


@pytest.mark.parametrize("name", ["BatchNorm2d", "InstanceNorm2d"])
def test_a_copy_of_a_layer_compiled_in_place_is_itself_called(name):
    layer, x = getattr(gb, name)(3, track_running_stats=True), torch.randn(4, 3, 5, 5)
    layer.compile(backend="aot_eager")
    other = copy.deepcopy(layer)
    other(x)
    assert layer.running_mean.abs().max() == 0
    assert other.running_mean.abs().max() > 0
