"""The networks of the benchmarks: what is drawn for them, the U-Net, and what has to be installed."""

import importlib.util

import pytest
import torch
from tests.benchmarks.small import network, with_activations
from torch import nn

import gammabeta as gb
from gammabeta.benchmarks import networks, unet
from gammabeta.benchmarks.networks import NETWORKS, Batch

OF_NAME = {network.name: network for network in NETWORKS}


def test_the_networks_are_these():
    assert list(OF_NAME) == [
        "mobilenetv2_100", "efficientnet_b0", "resnet18", "resnet50", "densenet121", "regnety_004", "convnext_atto",
        "vit_tiny_patch16_224", "llama", "unet",
    ]  # fmt: skip
    assert [n.name for n in NETWORKS if len(n.layouts) == 1] == ["vit_tiny_patch16_224", "llama"]


@pytest.mark.parametrize("known", NETWORKS, ids=lambda known: known.name)
def test_batches_are_always_the_same_and_differ_from_each_other(known):
    batches, again = known.batches("contiguous"), known.batches("contiguous")
    assert len(batches) == networks.BATCHES
    for batch, other in zip(batches, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch.inputs, other.inputs, strict=True))
        assert torch.equal(batch.target, other.target)
    assert batches[0].inputs[0].shape == known.shape
    assert not torch.equal(batches[0].inputs[0], batches[1].inputs[0])


def test_a_batch_gets_its_layout_and_dtype():
    images, times = torch.randn(4, 3, 8, 8), torch.tensor([1, 2, 3, 4])
    batch = Batch((images, times), images).to("channels_last", torch.float64)
    for x in (batch.inputs[0], batch.target):
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert x.dtype == torch.float64
    assert batch.inputs[1].dtype == torch.int64
    assert batch.first(2).inputs[0].shape == (2, 3, 8, 8)
    assert batch.first(2).target.shape == (2, 3, 8, 8)


def test_tokens_are_predicted_from_those_before():
    batch = OF_NAME["llama"].batches("contiguous")[0]
    tokens = batch.inputs[0]
    assert torch.equal(tokens[:, 1:], batch.target[:, :-1])
    logits = torch.full((*tokens.shape, networks.VOCABULARY), -30.0).scatter_(2, batch.target[..., None], 30.0)
    assert float(OF_NAME["llama"].loss(logits, batch.target)) == 0.0


def test_the_target_of_the_u_net_is_the_noise_in_its_images():
    batch = OF_NAME["unet"].batches("contiguous")[0]
    x, times = batch.inputs
    assert int(times.min()) >= 0
    assert int(times.max()) < unet.TIMES
    # Images and noise are independent, each with a weight of 0.7.
    assert torch.corrcoef(torch.stack([x.flatten(), batch.target.flatten()]))[0, 1] == pytest.approx(0.71, abs=0.02)


def test_the_u_net_keeps_the_shape_and_is_told_the_time():
    torch.manual_seed(0)
    model = unet.UNet(width=32, factors=(1, 2))
    x = torch.randn(2, 3, 16, 16)
    early, late = (model(x, torch.full((2,), step)) for step in (3, 900))
    assert early.shape == x.shape
    assert (early - late).abs().max() > 1e-3
    early.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_u_net_s_norms_are_group_norms_that_can_all_be_adopted_and_fused():
    torch.manual_seed(0)
    model = unet.UNet(width=32, factors=(1, 2))
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.GroupNorm)]
    assert gb.adopt(model).changed == norms
    change = gb.fuse(model, (torch.randn(2, 3, 16, 16), torch.tensor([3, 900])))
    assert set(norms) - set(change.changed) == {"attention.norm"}


def test_the_waves_of_a_step_differ_from_those_of_any_other():
    found = unet.waves(torch.arange(unet.TIMES), 64)
    assert found.shape == (unet.TIMES, 64)
    distances = torch.cdist(found, found) + 10 * torch.eye(unet.TIMES)
    assert distances.min() > 0.1


def test_a_seed_builds_the_same_network():
    one, other = (network(with_activations()).seeded() for _ in range(2))
    assert one.training
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_what_has_to_be_installed_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert networks.missing() == "it needs timm and torchvision: pip install --no-deps timm torchvision"
    assert OF_NAME["llama"].missing() == "it needs transformers: pip install transformers"
    assert OF_NAME["unet"].missing() is None


def test_norms_get_values_near_those_of_a_trained_network():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    networks.randomize_norms(nn.Sequential(norm))
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        assert len(set(tensor.tolist())) == 4
    assert norm.running_var.min() >= 0.5
