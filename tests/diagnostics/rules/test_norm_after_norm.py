"""GB307: what the second of two norms undoes, by mathematics and by measurement, and what it does not."""

import copy

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.benchmarks.networks import load_timm
from gammabeta.diagnostics.flow import own_forward

C = 8
KINDS = {
    "batch": lambda: nn.BatchNorm1d(C),
    "batch without affine": lambda: nn.BatchNorm1d(C, affine=False),
    "instance": lambda: nn.InstanceNorm1d(C, affine=True),
    "instance with statistics": lambda: nn.InstanceNorm1d(C, affine=True, track_running_stats=True),
    "group": lambda: nn.GroupNorm(2, C),
    "layer": lambda: nn.LayerNorm(C),
    "rms": lambda: nn.RMSNorm(C),
}
UNDO = ("batch", "batch without affine", "instance", "instance with statistics")


class Pair(nn.Module):
    """Two norms, one behind the other; those of the last axis between transpositions, which are views."""

    def __init__(self, first, second):
        super().__init__()
        self.before, self.first, self.second = nn.Conv1d(3, C, 1), KINDS[first](), KINDS[second]()

    def forward(self, x):
        x = self.before(x)
        for norm in (self.first, self.second):
            last = isinstance(norm, nn.LayerNorm | nn.RMSNorm)
            x = norm(x.transpose(1, 2)).transpose(1, 2) if last else norm(x)
        return x


def found(model, x, mode=True):
    return [(finding.where, finding.severity) for finding in gb.check(model.train(mode), x, select="GB307").findings]


def moved(model, x):
    """Return how far the output moves with another γ > 0 and β in the first norm, in its own size."""
    before = copy.deepcopy(model).train()(x)
    with torch.no_grad():
        for name, parameter in model.first.named_parameters():
            parameter.uniform_(0.5, 2) if name == "weight" else parameter.normal_()
    return float((model.train()(x) - before).detach().norm() / before.detach().norm())


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_what_is_found_is_what_is_undone(first, second):
    torch.manual_seed(0)
    x = torch.randn(16, 3, 12)
    model = Pair(first, second)
    # γ of the last axis is one of each channel too; such a norm is not looked at, since other forwards transpose.
    told = found(model, x) == [("second", "warning")]
    assert told is (second in UNDO and first not in ("layer", "rms"))
    if first == "batch without affine":
        return
    # ε of 1e-5 beside variances of 0.25 and more moves the output by 1e-4; what is not undone moves it by a tenth.
    distance = moved(model, x)
    if told:
        assert distance < 1e-3
    elif second not in UNDO:
        assert distance > 0.1


BARE = {
    "batch": lambda: nn.BatchNorm1d(C, affine=False),
    "instance": lambda: nn.InstanceNorm1d(C),
    "group": lambda: nn.GroupNorm(2, C, affine=False),
}


@pytest.mark.parametrize("second", ["batch", "instance"])
@pytest.mark.parametrize("first", BARE)
def test_a_first_norm_without_scale_and_shift_is_told_by_what_can_be_left_out(first, second):
    """What the message names can go: the output stays. Nothing can behind a GroupNorm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, C, 1), BARE[first](), KINDS[second]())
    with torch.no_grad():
        for p in model[2].parameters():
            p.uniform_(0.5, 2)
    x = torch.randn(16, 3, 12) * torch.rand(16, 1, 1).add(0.2)
    diagnosis = gb.check(model, x, select="GB307")
    without_first = (nn.Sequential(model[0], model[2])(x) - model(x)).norm() / model(x).norm()
    scaled = model[1](model[0](x)) * model[2].weight[:, None] + model[2].bias[:, None]
    without_second = (scaled - model(x)).norm() / model(x).norm()
    if (first, second) == ("group", "batch"):
        assert not diagnosis.findings
        assert min(without_first, without_second) > 0.02
        return
    (finding,) = diagnosis.findings
    if (first, second) == ("instance", "batch"):
        assert "has mean 0 and variance 1 already" in finding.message
        # ε beside variances of 0.01 and more.
        assert without_second < 2e-3
        assert without_first > 0.05
    else:
        assert "undoes that one, which has no γ and β" in finding.message
        assert str(finding.fix) == "remove 1, model.set_submodule('1', nn.Identity()), then train"
        assert without_first < 2e-3


def test_a_norm_whose_output_others_read_counts():
    class Model(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.first, self.second, self.how = nn.BatchNorm1d(C), nn.BatchNorm1d(C), how

        def forward(self, x):
            y = self.first(x)
            if self.how == "residual":
                return y + self.second(y)
            if self.how == "output":
                return y, self.second(y)
            if self.how == "view":
                return self.second(y) * y.view(-1, C)
            if self.how == "between":
                return self.second(torch.relu(y))
            if self.how == "twice":
                return self.second(y) + self.first(x + 1)
            return self.second(y.unsqueeze(2)) if self.how == "through a view" else self.second(y)

    torch.manual_seed(0)
    x = torch.randn(16, C)
    for how in ("residual", "output", "view", "between", "twice"):
        assert found(Model(how), x) == [], how
    for how in ("plain", "through a view"):
        assert found(Model(how), x) == [("second", "warning")], how
        assert found(Model(how), x, mode=False) == [("second", "warning")], how


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_frozen_norm_and_one_with_an_activation_count(which):
    x = torch.randn(16, C)
    frozen = nn.Sequential(nn.BatchNorm1d(C), nn.BatchNorm1d(C))
    gb.freeze(frozen, where="01"[which == "second"], affine=True)
    assert found(frozen, x) == []
    fused = nn.Sequential(gb.BatchNorm1d(C, activation="relu"), nn.BatchNorm1d(C))
    assert found(fused, x) == []

    class WithActivation(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x).relu()

    assert own_forward(WithActivation(C))
    assert found(nn.Sequential(WithActivation(C), nn.BatchNorm1d(C)), x) == []


def steps(model, run, count):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(count):
        optimizer.zero_grad()
        run().float().square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("trained", [0, 5])
def test_clip_and_swin_are_left_in_peace(trained):
    """Their first norm is also where the residual stream starts, and LayerNorm does not undo a LayerNorm."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(image_size=32, patch_size=8, **sizes))
    swin = transformers.SwinModel(
        transformers.SwinConfig(
            image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
        )
    )
    images = {"pixel_values": torch.randn(2, 3, 32, 32)}
    for model in (clip, swin):
        steps(model, lambda model=model: model(**images).last_hidden_state, trained)
        for mode in (True, False):
            assert found(model, images, mode) == []


@pytest.mark.parametrize("trained", [0, 5])
def test_timm_s_swin_and_repghost_are_left_in_peace(trained):
    pytest.importorskip("timm")
    timm = load_timm()
    torch.manual_seed(0)
    options = {
        "img_size": 32,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (1, 1),
        "num_heads": (2, 2),
    }
    x = torch.randn(2, 3, 32, 32)
    for model in (timm.models.SwinTransformer(**options), timm.create_model("repghostnet_050")):
        steps(model, lambda model=model: model(x), trained)
        for mode in (True, False):
            assert found(model, x, mode) == []
