"""Other libraries' converters keep what a BatchNorm of ours holds, or are refused with what to do instead."""

import copy

import pytest
import torch
import torch.utils.mkldnn
from tests.surgery import norm_act
from tests.surgery.models import images, randomize
from torch import nn
from torch.fx.experimental import optimization
from torch.nn.utils import fusion

import gammabeta as gb
from gammabeta.statistics import Ghost, Running, Synced

ROUNDING = {"rtol": 2e-5, "atol": 2e-5}


def block(**options):
    return randomize(nn.Sequential(nn.Conv2d(3, 4, 1), gb.BatchNorm2d(4, **options))).eval()


def adopted(act=nn.SiLU):
    m = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), norm_act.BatchNormAct2d(4, act))).eval()
    gb.adopt(m)
    return m


def fuse_conv_and_bn(conv, bn):
    """Fuse as the YOLO repositories do."""
    fused = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size)
    scale = torch.diag(bn.weight.div(torch.sqrt(bn.eps + bn.running_var)))
    fused.weight.data = torch.mm(scale, conv.weight.view(conv.out_channels, -1)).view(fused.weight.shape).data
    shift = bn.bias - bn.weight.mul(bn.running_mean).div(torch.sqrt(bn.running_var + bn.eps))
    fused.bias.data = (torch.mm(scale, conv.bias.reshape(-1, 1)).reshape(-1) + shift).data
    return fused


SYNC = nn.SyncBatchNorm.convert_sync_batchnorm
INSTEAD = {
    "sync": "gammabeta.set_statistics(model, gammabeta.statistics.Synced()), which synchronizes the layer and keeps "
    "all else; where= leaves out layers whose statistics have to stay.",
    "fold": "gammabeta.fold(model, inputs), which keeps the activation.",
    "freeze": "gammabeta.freeze(model), which keeps the activation.",
    "other": "gammabeta.release(model) before, which says of each layer whether torch's can take its place.",
}
# The converter, its name in the error, and what to do instead.
CONVERTERS = {
    "torch's sync": (lambda m: SYNC(m), "convert_sync_batchnorm", "sync"),
    "torch's fusion": (lambda m: fusion.fuse_conv_bn_eval(*m), "fuse_conv_bn_eval", "fold"),
    "torch's linear fusion": (
        lambda m: fusion.fuse_linear_bn_eval(nn.Linear(3, 4).eval(), m[1]),
        "fuse_linear",
        "fold",
    ),
    "YOLO's fusion": (lambda m: fuse_conv_and_bn(*m), "fuse_conv_and_bn", "fold"),
    "torch's MKL-DNN": (lambda m: torch.utils.mkldnn.to_mkldnn(m), "__init__", "other"),
}


@pytest.mark.parametrize("name", CONVERTERS)
class TestRefused:
    @pytest.mark.parametrize("make", [lambda: block(activation="silu"), adopted], ids=["ours", "adopted"])
    def test_with_an_activation(self, name, make):
        convert, function, instead = CONVERTERS[name]
        m = make()
        before, expected = m.state_dict(), m(images())
        with pytest.raises(TypeError, match=function) as raised:
            convert(m)
        assert (
            f"got a {type(m[1]).__name__} of gammabeta with activation='silu', which the layer built from it "
            in str(raised.value)
        )
        assert str(raised.value).endswith(f" not have. Call {INSTEAD[instead]}")
        assert m.state_dict().keys() == before.keys()
        torch.testing.assert_close(m(images()), expected)  # the convolution before it may have been converted

    def test_what_holds_nothing_is_converted_as_torch_s(self, name):
        ours, theirs = block(), randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))).eval()
        convert = CONVERTERS[name][0]
        converted = []
        for m in (ours, theirs):
            torch.manual_seed(0)  # of the linear layer
            converted.append(convert(m))
        x = images() if "linear" not in name else images()[:, :, 0, 0]
        x = x.to_mkldnn() if "MKL" in name else x
        dense = [y.to_dense() if y.is_mkldnn else y for y in (m(x) for m in converted)]
        torch.testing.assert_close(*dense)


@pytest.mark.parametrize("source", [Ghost(4), Running(), gb.statistics.Renorm(), Synced([0])])
def test_another_source_of_statistics(source):
    m = block(statistics=source)
    with pytest.raises(TypeError, match=r"with statistics=") as raised:
        SYNC(m)
    assert f"got a BatchNorm2d of gammabeta with statistics={source}, which" in str(raised.value)
    # Folding is for evaluation, in which every source uses the running statistics.
    torch.testing.assert_close(fusion.fuse_conv_bn_eval(*m)(images()), m(images()), **ROUNDING)


class Fixed(nn.Module):
    """As transformers' DETR has it."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))


@torch.no_grad()
def replace_batch_norm(model):
    for name, module in model.named_children():
        if isinstance(module, nn.BatchNorm2d):
            new = Fixed(module.num_features)
            new.weight.copy_(module.weight)
            new.bias.copy_(module.bias)
            new.running_mean.copy_(module.running_mean)
            new.running_var.copy_(module.running_var)
            model._modules[name] = new


def test_transformers_frozen_layers_in_place_of_ours():
    with pytest.raises(TypeError, match=r"replace_batch_norm: .* Call gammabeta.freeze\(model\), which keeps the act"):
        replace_batch_norm(block(activation="relu"))
    m = block(statistics=Ghost(2))
    replace_batch_norm(m)
    assert type(m[1]) is Fixed


def test_synced_over_all_processes_is_kept_by_a_sync_batch_norm():
    assert type(SYNC(block(statistics=Synced()))[1]) is nn.SyncBatchNorm


class TestThoseThatKnowTheActivation:
    """timm's take over the child `act`, which an adopted layer still has."""

    @pytest.mark.parametrize("convert", [norm_act.convert_sync_batchnorm, norm_act.freeze_batch_norm_2d])
    @pytest.mark.parametrize("act", [nn.SiLU, nn.Identity])
    def test_they_keep_it(self, convert, act):
        m = adopted(act)
        expected = m(images())
        converted = convert(copy.deepcopy(m))
        assert type(converted[1]).__name__ in ("SyncBatchNormAct", "FrozenBatchNormAct2d")
        torch.testing.assert_close(converted(images()), expected, **ROUNDING)
        gb.adopt(converted)  # and back again
        torch.testing.assert_close(converted(images()), expected, **ROUNDING)

    @pytest.mark.parametrize("convert", [norm_act.convert_sync_batchnorm, norm_act.freeze_batch_norm_2d])
    def test_another_activation_than_act_is_refused(self, convert):
        m = adopted(nn.Identity)
        m[1].activation = "relu"  # as `fuse` sets it
        with pytest.raises(TypeError, match="with activation='relu', which the layer built from it would not have"):
            convert(m)

    def test_a_fusion_that_asks_for_the_activation(self):
        assert _fuse_with_activation(*block(activation="relu")) == "relu"


def _fuse_with_activation(conv, bn):
    return bn.activation if bn.running_mean is not None and bn.running_var is not None and bn.eps else None


def test_reading_statistics_elsewhere_is_free():
    # Converters by name, but they build nothing.
    def freeze_me(layer):
        return layer.running_mean, layer.running_var

    def _init_weights(layer):
        return layer.running_mean, layer.running_var, layer.eps

    m = block(activation="relu", statistics=Ghost(2))[1]
    assert freeze_me(m)[0] is _init_weights(m)[0] is m._buffers["running_mean"]
    assert (m.running_mean, m.running_var, m.eps, m.weight) == (m.running_mean, m.running_var, 1e-5, m.weight)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        m.nothing_of_the_kind  # noqa: B018
    assert not hasattr(m, "drop")


def test_a_subclass_may_set_its_own_statistics():
    class Filled(gb.BatchNorm2d):
        def __init__(self):
            super().__init__(3, activation="relu")
            self.running_mean.fill_(2)
            self.running_var.fill_(3)

    assert Filled().running_var.tolist() == [3, 3, 3]


class Reads(nn.Module):
    """A module that reads the statistics by attribute in compiled code."""

    def __init__(self):
        super().__init__()
        self.bn = randomize(gb.BatchNorm2d(3, activation="relu"))

    def forward(self, x):
        return self.bn(x) * self.bn.running_mean.sum() + self.bn.running_var.sum() + self.bn.weight.sum()


@pytest.mark.parametrize("training", [True, False])
def test_compiled_and_functional_code_reads_them(training):
    torch._dynamo.reset()
    m = Reads().train(training)
    compiled, x = torch.compile(copy.deepcopy(m), backend="aot_eager", fullgraph=True), images()
    expected = m(x)
    torch.testing.assert_close(compiled(x), expected, **ROUNDING)
    torch.testing.assert_close(compiled._orig_mod.bn.running_var, m.bn.running_var, **ROUNDING)
    fresh = Reads().train(training)
    state = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
    torch.testing.assert_close(torch.func.functional_call(Reads().train(training), state, (x,)), expected, **ROUNDING)
    torch._dynamo.reset()


def test_torch_s_fusion_by_symbolic_tracing_of_a_released_model():
    m = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    randomize(m)
    gb.adopt(m)
    with gb.release(m):
        fused = optimization.fuse(m)
    assert type(m[1]) is gb.BatchNorm2d
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fused.modules())
    torch.testing.assert_close(fused(images()), m(images()), **ROUNDING)
