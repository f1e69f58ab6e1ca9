"""timm: its converters on adopted models, and our layers as its norm_layer. Skipped without timm."""

import copy
import importlib
from functools import partial

import pytest
import torch
from tests.zoo import build
from torch import nn

import gammabeta as gb
from gammabeta.benchmarks.networks import load_timm
from gammabeta.statistics import Ghost

NETWORKS = ("test_efficientnet", "test_byobnet", "test_resnet")


@pytest.fixture(scope="module")
def timm():
    try:
        return load_timm()
    except ImportError:
        pytest.skip("timm and torchvision are not installed")


def distance(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", NETWORKS)
class TestConverters:
    def model(self, name):
        """Return an adopted model, an input, and the output before adoption."""
        m, (x, _) = build(f"timm {name}")
        expected, classes = m(x), [type(module) for module in m.modules()]
        change = gb.adopt(m)
        assert change.left == {}
        assert all(isinstance(module, cls) for module, cls in zip(m.modules(), classes, strict=True))
        assert distance(m(x), expected) < 1e-5
        return m, x, expected

    def test_freezing_and_back(self, timm, name):
        m, x, expected = self.model(name)
        layers = importlib.import_module("timm.layers")
        frozen = layers.freeze_batch_norm_2d(copy.deepcopy(m))
        assert distance(frozen.train()(x), expected) < 1e-5
        frozen.eval()
        assert gb.adopt(frozen).left == {}
        assert distance(frozen(x), expected) < 1e-5
        thawed = layers.unfreeze_batch_norm_2d(copy.deepcopy(frozen))
        assert distance(thawed.eval()(x), expected) < 1e-5
        assert any(isinstance(module, nn.BatchNorm2d) and module.affine is not False for module in thawed.modules())
        timm.utils.freeze(m)
        assert distance(m.train()(x), expected) < 1e-5

    def test_synchronizing_and_back(self, timm, name):
        m, x, expected = self.model(name)
        convert = importlib.import_module("timm.layers").convert_sync_batchnorm
        state = m.state_dict()
        synced = convert(copy.deepcopy(m))
        assert distance(synced.eval()(x), expected) < 1e-5
        assert gb.adopt(synced).left == {}
        assert distance(synced(x), expected) < 1e-5
        assert gb.release(synced).left == {}
        assert distance(synced(x), expected) < 1e-5
        assert list(synced.state_dict()) == list(state)

    def test_torch_s_conversion_is_refused_where_an_activation_would_go(self, timm, name):
        m, _, _ = self.model(name)
        if any(getattr(module, "activation", None) for module in m.modules()):
            with pytest.raises(TypeError, match=r"of gammabeta with activation=.* Call gammabeta.set_statistics"):
                nn.SyncBatchNorm.convert_sync_batchnorm(m)
        else:
            nn.SyncBatchNorm.convert_sync_batchnorm(m)


class TestNormLayer:
    @pytest.mark.parametrize("name", ["resnet18", "densenet121", "convnext_atto"])
    def test_families_that_take_a_class_get_ours(self, timm, name):
        if name == "densenet121":
            with pytest.raises(TypeError, match="norm_layer as a layer that normalizes and activates"):
                timm.create_model(name, norm_layer=gb.BatchNorm2d)
            return
        layer = gb.BatchNorm2d if name == "resnet18" else gb.LayerNorm
        with torch.device("meta"):
            m = timm.create_model(name, norm_layer=layer)
        assert sum(type(module) is layer for module in m.modules()) >= 12

    def test_with_a_source_of_statistics(self, timm):
        with torch.device("meta"):
            m, plain = (
                timm.create_model("resnet18", norm_layer=norm_layer)
                for norm_layer in (partial(gb.BatchNorm2d, statistics=Ghost(4)), None)
            )
        assert m.bn1.statistics == Ghost(4)
        assert list(m.state_dict()) == list(plain.state_dict())

    @pytest.mark.parametrize("name", ["efficientnet_b0", "regnetx_002", "resnetv2_50", "test_byobnet"])
    @pytest.mark.parametrize(
        ("layer", "instead"),
        [
            (gb.BatchNorm2d, "without norm_layer and then call gammabeta.adopt(model): its BatchNorms become"),
            (partial(gb.BatchNorm2d, statistics=Ghost(4)), "call gammabeta.set_statistics(model, source) after that."),
            (gb.GroupNorm, "without norm_layer and then call gammabeta.convert(model, 'group')"),
            (gb.LayerNorm, "without norm_layer and then call gammabeta.convert(model, 'layer')"),
            (gb.InstanceNorm2d, "without norm_layer and then call gammabeta.convert(model, 'instance')."),
            (gb.RMSNorm, "with norm_layer='rmsnorm2d', timm's own."),
        ],
    )
    def test_families_that_would_take_timm_s_own_refuse_ours(self, timm, name, layer, instead):
        with pytest.raises(TypeError) as raised:
            timm.create_model(name, norm_layer=layer)
        cls = layer.func if isinstance(layer, partial) else layer
        assert str(raised.value).startswith(
            "timm: expected norm_layer as a layer that normalizes and activates, of which this family of networks is "
            f"built, got gammabeta.{cls.__name__}, in place of which timm would take its own of that name."
        )
        assert instead in str(raised.value)

    def test_timm_s_own_and_torch_s_are_as_ever(self, timm):
        layers = importlib.import_module("timm.layers")
        for norm_layer in (nn.BatchNorm2d, "batchnorm2d", layers.BatchNormAct2d, layers.EvoNorm2dS0):
            expected = layers.EvoNorm2dS0 if norm_layer is layers.EvoNorm2dS0 else layers.BatchNormAct2d
            assert type(layers.get_norm_act_layer(norm_layer, "relu")(3)) is expected

    def test_what_is_to_be_done_instead_works(self, timm):
        m = timm.create_model("test_efficientnet")
        keys = list(m.state_dict())
        gb.adopt(m)
        gb.set_statistics(m, Ghost(2))
        assert list(m.state_dict()) == keys
        assert all(isinstance(module, gb.BatchNorm2d) for module in m.modules() if hasattr(module, "running_mean"))
