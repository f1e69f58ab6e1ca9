"""GB106: outputs that depend on the other samples of the batch."""

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.rules import batch_dependent_inference


def companions_matter(model, count=200):
    """Return how much a sample's output varies with the three others of its batch, in standard deviations."""
    probe = torch.randn(1, 3, 8, 8)
    outputs = torch.stack([model(torch.cat([probe, torch.randn(3, 3, 8, 8)]))[0] for _ in range(count)])
    return (outputs.std(0).square().mean() / outputs.var()).sqrt().item()


@torch.no_grad()
def test_companions_move_the_output_and_after_the_fix_they_do_not():
    torch.manual_seed(0)
    example = batch_dependent_inference.flagged()
    model = example.model
    before = companions_matter(model)
    assert before == pytest.approx(0.11, abs=0.03)
    diagnosis = gb.check(model, loader=example.loader, select="GB106")
    assert "fix(keep_checkpoints=False)" in diagnosis.fix().left["1"]
    assert model[1].running_mean is None
    diagnosis.fix(keep_checkpoints=False)
    assert companions_matter(model) < 1e-6  # the rounding of a batch of four
    stacked = torch.cat(example.loader)
    mean = nn.functional.conv2d(stacked, model[0].weight, model[0].bias).mean((0, 2, 3))
    # Exact moments of float32 values.
    torch.testing.assert_close(model[1].running_mean, mean, rtol=0, atol=1e-5)
    assert list(model.state_dict()) == [
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked",
    ]  # fmt: skip


def test_without_a_loader_nothing_is_done_and_it_is_said():
    model = batch_dependent_inference.flagged().model
    change = gb.check(model, select="GB106").fix()
    assert change.changed == []
    assert change.left["1"] == (
        "GB106 batch-dependent-inference: by hand: attach running statistics and gammabeta.recalibrate(model, batches, "
        "where='1'); given loader=, the fix does it"
    )
    assert model[1].running_mean is None


def test_switched_off_afterwards_is_a_warning_since_the_buffers_stand_still():
    norm = nn.BatchNorm1d(4)
    norm(torch.randn(16, 4))
    norm.track_running_stats = False
    before = norm.running_mean.clone()
    norm(torch.randn(16, 4) + 3)
    assert torch.equal(norm.running_mean, before)
    (finding,) = gb.check(norm, select="GB106").findings
    assert finding.severity == "warning"
    assert finding.message.startswith("track_running_stats is off although it has running statistics")


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4)])
def test_norms_of_single_samples_are_not_found(norm):
    assert not gb.check(norm.eval(), select="GB106").findings


def lightning_frozen():
    """Return a trained backbone, frozen as Lightning's BaseFinetuning does, and a head."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    for _ in range(20):
        backbone(torch.randn(16, 3, 8, 8) * 2 + 1)
    backbone.requires_grad_(False)
    backbone[1].track_running_stats = backbone[4].track_running_stats = False
    return nn.Sequential(backbone, nn.Flatten(), nn.Linear(128, 2))


@torch.no_grad()
def test_norms_frozen_as_lightning_freezes_them_keep_their_statistics_and_training_uses_them():
    model = lightning_frozen()
    loader = [torch.randn(16, 3, 8, 8) for _ in range(4)]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    expected = model.eval()(loader[0])
    diagnosis = gb.check(model.train(), loader[0], loader=loader)
    assert [finding.code for finding in diagnosis.warnings] == ["GB106", "GB106"]
    assert "fix: gammabeta.freeze(model)" in str(diagnosis)
    change = diagnosis.fix()
    assert change.changed == ["0.1", "0.4"]
    after = gb.check(model, loader[0], loader=loader)
    assert after.errors == after.warnings == ()
    model(loader[0] + 5)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    # torch's kernel and ours, in another order.
    torch.testing.assert_close(model.train()(loader[0]), expected, rtol=1e-5, atol=1e-5)
    change.undo()
    assert not model[0][1].track_running_stats
    assert type(model[0][1]) is nn.BatchNorm2d


def test_frozen_norms_that_stay_in_evaluation_while_the_rest_trains_are_not_found():
    model = lightning_frozen().train()
    model[0].eval()
    assert not gb.check(model, torch.randn(16, 3, 8, 8), select="GB106").findings


def test_a_backbone_that_no_optimizer_has_is_frozen_and_not_set_tracking_again():
    model = lightning_frozen().train().requires_grad_(True)
    loader = [torch.randn(16, 3, 8, 8) for _ in range(4)]
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    change = gb.check(model, loader[0], loader=loader, optimizer=optimizer).fix()
    assert {*change.changed} >= {"0.1", "0.4"}
    after = gb.check(model, loader[0], loader=loader, optimizer=optimizer)
    assert after.errors == after.warnings == ()


def test_a_frozen_norm_without_statistics_is_left_to_a_person():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    loader = [torch.randn(8, 4)]
    change = gb.check(model, loader=loader, select="GB106").fix(keep_checkpoints=False)
    assert change.changed == []
    assert "if it is to stay frozen" in change.left["0.1"]
