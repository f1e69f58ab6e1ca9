"""Opacus, whose tables look classes up exactly, knows our layers: with a stand-in, and where it is installed."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from tests.surgery.models import randomize
from tests.surgery.norm_act import BatchNormAct2d
from torch import nn

import gammabeta as gb
from gammabeta.layers.integrations.opacus import grad_sample
from gammabeta.statistics import Synced

ACTIVATIONS = [None, "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu"]
# Layers with that activation, and the shapes that they take.
LAYERS = {
    "GroupNorm": (lambda act: gb.GroupNorm(2, 4, activation=act), [(5, 4), (5, 4, 7), (5, 4, 3, 3)]),
    "GroupNorm without β": (lambda act: gb.GroupNorm(2, 4, bias=False, activation=act), [(5, 4, 3, 3)]),
    "LayerNorm": (lambda act: gb.LayerNorm(4, activation=act), [(5, 4), (5, 3, 4)]),
    "LayerNorm of two axes": (lambda act: gb.LayerNorm((3, 4), activation=act), [(5, 3, 4), (5, 2, 3, 4)]),
    "LayerNorm without β": (lambda act: gb.LayerNorm(4, bias=False, activation=act), [(5, 3, 4)]),
    "RMSNorm": (lambda act: gb.RMSNorm(4, activation=act), [(5, 4), (5, 3, 4)]),
    "InstanceNorm1d": (lambda act: gb.InstanceNorm1d(4, affine=True, activation=act), [(5, 4, 6)]),
    "InstanceNorm2d": (lambda act: gb.InstanceNorm2d(4, affine=True, activation=act), [(5, 4, 6, 3)]),
    "InstanceNorm3d": (lambda act: gb.InstanceNorm3d(4, affine=True, activation=act), [(5, 4, 2, 6, 3)]),
}
CASES = [(name, shape, act) for name, (_, shapes) in LAYERS.items() for shape in shapes for act in ACTIVATIONS]
ROUNDING = {"rtol": 2e-5, "atol": 2e-5}  # sums of some ten values in another order


def case(name, shape, act):
    """Make a layer, an input, a gradient of the output, and by autograd the gradients of each sample."""
    layer = randomize(LAYERS[name][0](act))
    generator = torch.Generator().manual_seed(1)
    x, g_y = (torch.randn(shape, generator=generator) * 2 for _ in range(2))
    expected = [
        torch.autograd.grad(layer(x[i : i + 1]), list(layer.parameters()), g_y[i : i + 1]) for i in range(len(x))
    ]
    return layer, x, g_y, [torch.stack(of_samples) for of_samples in zip(*expected, strict=True)]


@pytest.mark.parametrize(("name", "shape", "act"), CASES)
def test_the_sampler_s_gradients_are_autograd_s_sample_by_sample(name, shape, act):
    layer, x, g_y, expected = case(name, shape, act)
    found = grad_sample(layer, [x], g_y)
    assert list(found) == list(layer.parameters())
    for got, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(got, wanted, **ROUNDING)


def test_only_for_what_is_trained_and_in_the_parameter_s_dtype():
    layer, x, g_y, expected = case("GroupNorm", (5, 4, 7), "silu")
    layer.bias.requires_grad_(False)
    (found,) = grad_sample(layer, [x.bfloat16()], g_y.bfloat16()).items()
    assert found[0] is layer.weight
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(found[1], expected[0], rtol=0.1, atol=0.1)  # of inputs in 8 bits


STAND_IN = """
import torch.nn as nn
class ModuleValidator:
    VALIDATORS = {}
    FIXERS = {}
def validate(module): return ["refused"]
def fix(module, **kwargs): return nn.GroupNorm(1, module.num_features)
for cls in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
    ModuleValidator.VALIDATORS[cls], ModuleValidator.FIXERS[cls] = validate, fix
"""


def test_registration_in_a_stand_in(tmp_path):
    for name, text in {
        "opacus/__init__.py": "from opacus import grad_sample, validators",
        "opacus/validators.py": STAND_IN,
        "opacus/grad_sample.py": "S = {}\ndef register_grad_sampler(cls): return lambda f: S.__setitem__(cls, f)",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import gammabeta as gb\n"
        "from tests.surgery.norm_act import BatchNormAct2d\n"
        "first = BatchNormAct2d(3); gb.adopt(first)\n"
        "import opacus\n"
        "class Mine(BatchNormAct2d): pass\n"
        "second = Mine(3); gb.adopt(second)\n"
        "v = opacus.validators.ModuleValidator\n"
        "for layer in (first, second, gb.BatchNorm1d(3)):\n"
        "    print(v.VALIDATORS[type(layer)](layer), v.FIXERS[type(layer)](layer))\n"
        "print(sorted(cls.__name__ for cls in opacus.grad_sample.S))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    fixed = "['refused'] GroupNorm(1, 3, eps=1e-05, affine=True, bias=True"
    assert done.stdout.splitlines() == [
        f"{fixed}, activation=relu, gammabeta)",
        f"{fixed}, activation=relu, gammabeta)",
        f"{fixed})",
        "['GroupNorm', 'InstanceNorm1d', 'InstanceNorm2d', 'InstanceNorm3d', 'LayerNorm', 'RMSNorm']",
    ], done.stderr


def opacus():
    return pytest.importorskip("opacus")


class TestValidator:
    @pytest.mark.parametrize("options", [{}, {"track_running_stats": False}, {"activation": "relu"}])
    def test_batch_norms_are_refused_and_mended(self, options):
        validator = opacus().validators.ModuleValidator
        model = nn.Sequential(nn.Conv2d(3, 4, 1), gb.BatchNorm2d(4, **options)).train()
        assert len(validator.validate(model)) == 1
        fixed = validator.fix(model)
        assert validator.validate(fixed) == []
        assert isinstance(fixed[1], nn.GroupNorm)
        assert getattr(fixed[1], "activation", None) == options.get("activation")
        fixed = validator.fix(model, replace_bn_with_in=True)
        assert isinstance(fixed[1], nn.InstanceNorm2d)
        assert getattr(fixed[1], "activation", None) == options.get("activation")

    @pytest.mark.parametrize("make", [nn.BatchNorm2d, BatchNormAct2d, nn.SyncBatchNorm])
    def test_adopted_ones_too(self, make):
        validator = opacus().validators.ModuleValidator
        model = nn.Sequential(nn.Conv2d(3, 4, 1), make(4)).train()
        gb.adopt(model)
        assert len(validator.validate(model)) == 1
        gb.set_statistics(model, Synced())
        assert len(validator.validate(model)) == 1
        fixed = validator.fix(model)
        assert validator.validate(fixed) == []
        assert isinstance(fixed[1], nn.GroupNorm)

    def test_instance_norms_that_track(self):
        validator = opacus().validators.ModuleValidator
        model = nn.Sequential(gb.InstanceNorm2d(4, affine=True, track_running_stats=True, activation="relu"))
        assert len(validator.validate(model)) == 1
        fixed = validator.fix(model)
        assert validator.validate(fixed) == []
        assert type(fixed[0]) is gb.InstanceNorm2d
        assert fixed[0].activation == "relu"
        assert validator.validate(nn.Sequential(gb.InstanceNorm2d(4, affine=True))) == []


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ghost"])
@pytest.mark.parametrize(("name", "shape", "act"), [case for case in CASES if case[2] in (None, "relu", "gelu")])
def test_opacus_gets_the_gradients_of_each_sample(mode, name, shape, act):
    opacus()
    from opacus import grad_sample as samplers

    layer, x, g_y, expected = case(name, shape, act)
    layer, x = copy.deepcopy(layer), x.requires_grad_()
    if mode == "ghost":
        wrapped = samplers.GradSampleModuleFastGradientClipping(layer, loss_reduction="sum", max_grad_norm=1.0)
    else:
        wrapped = samplers.GradSampleModule(layer, loss_reduction="sum", force_functorch=mode == "functorch")
    wrapped(x).backward(g_y)
    parameters = list(wrapped._module.parameters())
    for parameter, wanted in zip(parameters, expected, strict=True):
        if mode == "ghost":
            torch.testing.assert_close(parameter._norm_sample, wanted.flatten(1).norm(dim=1), **ROUNDING)
        else:
            torch.testing.assert_close(parameter.grad_sample, wanted, **ROUNDING)


class TestUnseenArguments:
    """Opacus records only positional inputs: arguments that it needs and cannot see are refused, all others work."""

    def calls(self, **options):
        opacus()
        from opacus.grad_sample import GradSampleModule

        return GradSampleModule(gb.GroupNorm(2, 4, **options))

    def test_a_mask(self):
        mask = torch.ones(5, 7, dtype=torch.bool)
        for layer in (self.calls(), self.calls(activation="relu")):
            with pytest.raises(TypeError) as raised:
                layer(torch.randn(5, 4, 7), mask=mask)
            assert str(raised.value) == (
                "GroupNorm: expected an input only, got a mask while Opacus records the layer's calls, which does not "
                "see it and would compute wrong gradients for each sample. Call the layer without: multiply by the "
                "mask, or add the residual and apply the activation, outside of the layer."
            )

    def test_a_residual_where_it_bends_the_activation(self):
        x, residual = torch.randn(5, 4, 7), torch.randn(5, 4, 7)
        with pytest.raises(TypeError, match="got a residual while Opacus records"):
            self.calls(activation="relu")(x, residual=residual)
        plain = self.calls()
        plain(x, residual=residual).square().sum().backward()
        assert plain._module.weight.grad_sample.isfinite().all()

    def test_without_opacus_they_are_as_ever(self):
        layer = gb.GroupNorm(2, 4, activation="relu")
        layer.register_forward_hook(lambda *_: None)
        layer(torch.randn(5, 4, 7), torch.randn(5, 4, 7), mask=torch.ones(5, 7, dtype=torch.bool))


def test_a_private_training_step():
    engine = opacus().PrivacyEngine
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    gb.adopt(model)
    data = torch.utils.data.TensorDataset(torch.randn(16, 3, 3, 3), torch.randint(2, (16,)))
    before = io.BytesIO()
    torch.save(model.state_dict(), before)
    private, optimizer, loader = engine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    for images, labels in loader:
        if len(images):
            optimizer.zero_grad()
            nn.functional.cross_entropy(private(images), labels).backward()
            optimizer.step()
    before.seek(0)
    assert not torch.equal(private._module[1].weight, torch.load(before)["1.weight"])
    assert private._module[1].weight.isfinite().all()
