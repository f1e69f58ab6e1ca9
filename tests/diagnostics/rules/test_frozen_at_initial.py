"""GB113: what norms frozen at 0 and 1 compute, and which ones are found."""

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.benchmarks.networks import load_timm
from gammabeta.diagnostics.rules import frozen_at_initial


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's: four buffers, at their initial values as constructed."""

    def __init__(self, features):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((features,), value))

    def forward(self, x):
        scale = (self.weight * (self.running_var + 1e-5).rsqrt())[:, None, None]
        return x * scale + (self.bias - self.running_mean * scale.flatten())[:, None, None]


def detector(norm=FrozenBatchNorm2d):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), norm(8), nn.ReLU())
    return nn.Sequential(backbone, nn.Flatten(), nn.Linear(8 * 4 * 4, 5))


def batch():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 3 + 3


def findings(model, *inputs, code="GB113"):
    return [(f.severity, f.where) for f in gb.check(model, *inputs, select=code).findings]


def test_the_flagged_example_returns_its_input_and_recalibrated_it_does_not():
    example = frozen_at_initial.flagged()
    conv, norm = example.model[0][0], example.model[0][1]
    x = conv(example.inputs).detach()
    assert (norm(x) - x).abs().max() < 1e-5 * x.abs().max()  # ε = 1e-5 of the variance
    far = (norm(x).mean((0, 2, 3)) / norm(x).std((0, 2, 3))).abs().max()
    assert far > 2
    gb.unfreeze(example.model)
    gb.recalibrate(example.model, [example.inputs])
    assert norm.eval()(x).mean((0, 2, 3)).abs().max() < 0.1
    gb.freeze(example.model)
    assert findings(example.model, example.inputs) == []


def test_frozen_layers_of_another_library_as_constructed_are_a_note_and_on_inputs_a_warning():
    model = detector()
    assert findings(model) == [("note", "0.1")]
    (finding,) = gb.check(model, batch(), select="GB113").findings
    assert (finding.severity, finding.where) == ("warning", "0.1")
    assert finding.message.startswith(
        "all 2 frozen BatchNorms are exactly as constructed (γ 1, β 0, mean 0, variance 1): they return their inputs "
        "unchanged; this one's input is not at 0 and 1: mean off by"
    )
    assert finding.evidence["far"] == 2


def test_beside_norms_that_have_moved_it_is_a_warning_without_inputs():
    model = nn.Sequential(detector(), nn.BatchNorm1d(5))
    model(batch())
    assert findings(model) == [("warning", "0.0.1")]


@pytest.mark.parametrize("key", ["weight", "bias", "running_mean", "running_var"])
def test_converted_weights_with_folded_statistics_are_not_found(key):
    model = detector()
    for norm in (model[0][1], model[0][4]):
        getattr(norm, key).copy_(torch.rand(8) + 0.5)
    assert findings(model) == findings(model, batch()) == []


def test_inputs_that_are_at_0_and_1_are_not_found():
    model = nn.Sequential(FrozenBatchNorm2d(3), nn.Conv2d(3, 4, 3))
    assert findings(model, torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))) == []


def test_norms_put_into_evaluation_in_a_model_that_trains_are_frozen_too():
    model = detector(nn.BatchNorm2d).train()
    model[0].eval()
    assert findings(model) == [("note", "0.1")]
    assert findings(model, batch()) == [("warning", "0.1")]
    assert findings(model.eval()) == findings(model.train()) == []


def test_a_fresh_model_is_not_found_in_either_mode():
    model = detector(nn.BatchNorm2d)
    for mode in (True, False):
        assert findings(model.train(mode)) == findings(model, batch()) == []


def test_a_norm_that_never_moved_beside_others_that_did_is_a_note_on_inputs():
    model = detector(nn.BatchNorm2d)
    for _ in range(50):
        model(batch())
    assert findings(model.eval(), batch()) == []
    model[0][4] = nn.BatchNorm2d(8).eval()
    assert findings(model) == []
    assert findings(model, batch()) == [("note", "0.4")]


def test_watched_frozen_norms_are_found_by_their_batches():
    model = detector()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with gb.watch(model, optimizer, every=1) as watch:
        for _ in range(4):
            model(batch()).square().mean().backward()
            optimizer.step()
    (finding,) = watch.diagnosis(select="GB113").findings
    assert (finding.severity, finding.where) == ("warning", "0.1")
    assert "the batches' statistics are" in finding.message


def test_what_the_fix_of_a_thawing_norm_freezes_was_found_before_it():
    model = detector(nn.BatchNorm2d).train()
    model[0].requires_grad_(False)
    assert findings(model) == [("note", "0.1")]
    gb.check(model, select="GB101").fix()
    assert findings(model) == [("note", "0.1")]


def without_inputs_and_with(model):
    return findings(model), findings(model, batch())


def test_a_frozen_backbone_whose_last_scales_start_at_zero_is_found():
    """As ResNets do, in whose blocks the last γ starts at 0."""
    model = detector(nn.BatchNorm2d)
    nn.init.zeros_(model[0][4].weight)
    gb.freeze(model[0], affine=True)
    assert without_inputs_and_with(model.train()) == ([("note", "0.1")], [("warning", "0.1")])
    (finding,) = gb.check(model, batch(), select="GB113").findings
    assert finding.message.startswith(
        "all 2 frozen BatchNorms are exactly as constructed (γ 1 or 0, β 0, mean 0, variance 1): 1 returns its input "
        "unchanged, and 1 returns zeros; this one's input is not at 0 and 1"
    )


def test_timm_s_resnet_frozen_before_loading_is_found():
    pytest.importorskip("timm")
    torch.manual_seed(0)
    backbone = load_timm().create_model("resnet18", pretrained=False, num_classes=0)
    gb.freeze(backbone, affine=True)
    model = nn.Sequential(backbone, nn.Linear(512, 3)).train()
    (finding,) = gb.check(model, torch.randn(4, 3, 64, 64) + 2, select="GB113").findings
    assert (finding.severity, finding.where) == ("warning", "0.bn1")


def test_one_of_two_frozen_backbones_that_was_not_loaded_is_found():
    loaded, fresh = detector()[0], detector()[0]
    for norm in (loaded[1], loaded[4]):
        norm.running_mean.normal_()
    model = nn.ModuleDict({"loaded": loaded, "fresh": fresh, "head": nn.Linear(8, 2)}).train()
    (finding,) = gb.check(model, select="GB113").findings
    assert (finding.severity, finding.where) == ("warning", "fresh.1")
    assert finding.message.startswith("2 of 4 frozen BatchNorms are exactly as constructed")


def test_one_fresh_norm_in_a_loaded_frozen_backbone_is_found_by_its_inputs():
    model = detector()
    model[0][1].running_mean.normal_()
    (finding,) = gb.check(model, batch(), select="GB113").findings
    assert (finding.severity, finding.where) == ("warning", "0.4")
    assert finding.message.startswith(
        "it is frozen and exactly as constructed (γ 1, β 0, mean 0, variance 1): it returns"
    )


def test_a_scale_of_zero_among_folded_weights_is_not_found():
    model = detector()
    model[0][1].weight.copy_(torch.rand(8) + 0.5)
    model[0][4].weight.zero_()
    assert without_inputs_and_with(model) == ([], [])
