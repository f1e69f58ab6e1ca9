"""Arms of a user's model: each arm's norm in place of the model's own BatchNorms."""

import importlib.util

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.benchmarks.networks import load_timm
from gammabeta.lab.images.arms import ArmError, Unnormalized, batch_norms, put
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.training import train
from gammabeta.lab.images.user_network import impossible_arms, user_network
from gammabeta.lab.norms import GHOST_SIZE, NORMS, ChannelRMSNorm, groups, norm
from gammabeta.lab.sources import load, source
from gammabeta.lab.user_model import takes_norm

DIGITS = source("digits")
ARMS = ("none", "batch", "layer", "group", "instance", "rms", "ghost", "renorm")


def with_affine(layer):
    """Make γ and β random, so that a norm that ignores them is noticed."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 1.5, generator=generator)
    return layer


@pytest.mark.parametrize("positions", [0, 2])
@pytest.mark.parametrize("arm", [*NORMS, "ghost:2"])
def test_each_arm_computes_what_its_layer_does(arm, positions):
    if (arm, positions) == ("instance", 0):
        return  # tested below
    x = torch.randn((8, 16, 3, 3)[: 2 + positions], generator=torch.Generator().manual_seed(0)) * 3 + 2
    cls = nn.BatchNorm2d if positions else nn.BatchNorm1d
    model = nn.Sequential(nn.Identity(), with_affine(cls(16)))
    own = {name: value.clone() for name, value in model[1].named_parameters()}
    put(model, arm)
    expected = norm(arm, 16, positions).train()
    inner = expected.norm if isinstance(expected, ChannelRMSNorm) else expected
    with torch.no_grad():
        for name, parameter in inner.named_parameters():
            parameter.copy_(own[name])
        # The same arithmetic, up to the order of additions in float32.
        torch.testing.assert_close(model(x), expected(x), rtol=1e-5, atol=1e-5)
    # Parameters that the arm has are the model's own; the others are gone.
    assert {name.rpartition(".")[2] for name, _ in model.named_parameters()} == set(dict(inner.named_parameters()))


def test_each_arm_has_its_layers():
    kinds = {
        "none": Unnormalized, "batch": gb.BatchNorm2d, "layer": gb.GroupNorm, "group": gb.GroupNorm,
        "instance": gb.InstanceNorm2d, "rms": ChannelRMSNorm, "ghost": gb.BatchNorm2d, "renorm": gb.BatchNorm2d,
        "batch_plain": gb.BatchNorm2d,
    }  # fmt: skip
    assert kinds.keys() == NORMS.keys()
    for arm, cls in kinds.items():
        model = nn.Sequential(nn.BatchNorm2d(12), nn.Sequential(nn.BatchNorm2d(16), nn.LayerNorm(4)))
        put(model, arm)
        assert [type(model[0]), type(model[1][0])] == [cls, cls], arm
        assert type(model[1][1]) is nn.LayerNorm
        if arm == "group":
            assert [model[0].num_groups, model[1][0].num_groups] == [groups(12), groups(16)]
        if arm == "layer":
            assert [model[0].num_groups, model[1][0].num_groups] == [1, 1]
        if arm == "ghost":
            assert model[0].statistics == gb.statistics.Ghost(GHOST_SIZE)
        if arm == "renorm":
            assert model[0].statistics == gb.statistics.Renorm()


@pytest.mark.parametrize("arm", ARMS)
def test_activations_and_residuals_stay(arm):
    x = torch.randn(8, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    skip = torch.randn(8, 8, 4, 4, generator=torch.Generator().manual_seed(1))

    class Own(nn.Module):
        def __init__(self, activation):
            super().__init__()
            self.norm = gb.BatchNorm2d(8, activation=activation)

        def forward(self, x):
            return self.norm(x, skip)

    plain, active = Own(None), Own("silu")
    put(plain, arm)
    put(active, arm)
    torch.testing.assert_close(active(x), nn.functional.silu(plain(x)))
    if arm == "none":
        assert torch.equal(plain(x), x + skip)


def test_a_source_that_the_model_brings_gives_way_to_the_arms():
    for arm, expected in (("batch", gb.statistics.Batch()), ("ghost", gb.statistics.Ghost(GHOST_SIZE))):
        model = nn.Sequential(gb.BatchNorm2d(4, statistics=gb.statistics.Ghost(GHOST_SIZE)))
        put(model, arm)
        assert model[0].statistics == expected


def test_a_norm_in_two_places_stays_one():
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(shared, nn.Sequential(shared))
    put(model, "rms")
    assert model[0] is model[1][0]
    assert isinstance(model[0], ChannelRMSNorm)


class Own(nn.BatchNorm2d):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("layer", "arm", "text"),
    [
        (Own(4), "batch", "0: Own has a forward of its own, which would be lost"),
        (Own(4), "none", "0: Own has a forward of its own, which would be lost"),
        (
            nn.LazyBatchNorm2d(),
            "group",
            "0: LazyBatchNorm2d has not been initialized: run a batch through the model first",
        ),
        (
            nn.BatchNorm1d(4),
            "instance",
            "0: InstanceNorm of (N, C), a BatchNorm1d's input, has one value per statistic",
        ),
        (
            nn.BatchNorm2d(4, track_running_stats=False),
            "renorm",
            f"0: it has no running statistics, which {gb.statistics.Renorm()} needs",
        ),
    ],
)
def test_a_norm_that_cannot_be_exchanged_is_told(layer, arm, text):
    with pytest.raises(ArmError) as caught:
        put(nn.Sequential(layer), arm)
    assert str(caught.value) == text


def test_an_unknown_arm_is_told():
    with pytest.raises(ValueError, match=rf"^put: expected one of {', '.join(NORMS)}, got cats$"):
        put(nn.Sequential(nn.BatchNorm2d(4)), "cats")


# --- through the study's own door ---


@pytest.mark.parametrize(
    ("parameters", "handed"),
    [
        ("a, b", False),
        ("a, b, c", True),
        ("a, b, norm=None", True),
        ("a, b, *, norm", True),
        ("a, b, pretrained=False", False),
        ("a, b, **options", False),
        ("*all", True),
    ],
)
def test_whether_a_function_takes_norm_is_read_from_its_parameters(parameters, handed):
    space = {}
    exec(f"def build({parameters}): pass", space)
    assert takes_norm(space["build"]) is handed


def written(folder, text):
    (folder / "net.py").write_text(text)
    return f"{folder / 'net.py'}:build"


PLAIN = """
from torch import nn
def build(input_shape, classes):
    return nn.Sequential(nn.Conv2d(input_shape[0], 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(4 * 36, 8), nn.BatchNorm1d(8), nn.Linear(8, classes)).eval()
"""


def test_a_model_with_batch_norms_is_trained_with_each_arm(tmp_path):
    task = load(DIGITS)
    network = user_network(written(tmp_path, PLAIN), task)
    weights = []
    for arm in (arm for arm in ARMS if arm != "instance"):
        model = build(task, network, arm, 5)
        assert model.training
        weights.append([m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)])
        result = train(task=DIGITS, network=network, norm=arm, rate=0.1, batch_size=8, steps=2, seed=5)
        assert result["diverged"] is None
    for other in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], other, strict=True))
    text = (
        f"--model {network['model']}: InstanceNorm cannot stand in place of 5: InstanceNorm of (N, C), a BatchNorm1d's "
        "input, has one value per statistic."
    )
    assert impossible_arms(network, task) == {"instance": text}


def test_norm_goes_in_by_its_name(tmp_path):
    text = """
from torch import nn
def build(input_shape, classes, *, norm):
    return nn.Sequential(nn.Conv2d(input_shape[0], 4, 3), norm(4), nn.Flatten(), nn.Linear(4 * 36, classes))
"""
    task = load(DIGITS)
    assert isinstance(build(task, user_network(written(tmp_path, text), task), "group", 0)[1], gb.GroupNorm)


def trained(network, arms, **settings):
    for arm in arms:
        result = train(task=DIGITS, network=network, norm=arm, rate=0.02, batch_size=8, steps=1, seed=1, **settings)
        assert result["diverged"] is None, arm


def test_a_model_of_timm_goes_in(tmp_path):
    if not importlib.util.find_spec("timm"):
        pytest.skip("timm is not installed")
    load_timm()
    task = load(DIGITS)
    text = """
import timm
def build(input_shape, classes):
    return timm.create_model("resnet18", num_classes=classes, in_chans=input_shape[0])
"""
    network = user_network(written(tmp_path, text), task)
    # 8 × 8 pixels become 1 × 1 inside the model, where an InstanceNorm has one value.
    assert set(impossible_arms(network, task)) == {"instance"}
    trained(network, ("batch", "group"))


def test_norms_of_timm_that_hold_their_activation_go_in(tmp_path):
    if not importlib.util.find_spec("timm"):
        pytest.skip("timm is not installed")
    load_timm()
    task = load(DIGITS)
    text = """
import timm
def build(input_shape, classes):
    return timm.create_model("test_efficientnet", num_classes=classes, in_chans=input_shape[0])
"""
    network = user_network(written(tmp_path, text), task)
    assert not set(impossible_arms(network, task)) - {"instance"}
    model = build(task, network, "none", 0)
    assert not batch_norms(model)
    assert "silu" in {module.activation for module in model.modules() if isinstance(module, Unnormalized)}


def test_a_model_of_transformers_goes_in(tmp_path):
    if not importlib.util.find_spec("transformers"):
        pytest.skip("transformers is not installed")
    task = load(DIGITS)
    text = """
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

class Scores(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits

def build(input_shape, classes):
    config = ResNetConfig(num_channels=input_shape[0], embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
                          layer_type="basic", num_labels=classes)
    return Scores(ResNetForImageClassification(config))
"""
    network = user_network(written(tmp_path, text), task)
    assert not set(impossible_arms(network, task)) - {"instance"}
    trained(network, ("none", "renorm"))
