"""The networks of the study: shapes, where norms stand, what SkipInit and Fixup start from, and training together."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from gammabeta.lab.images import together, training
from gammabeta.lab.images.networks import PLACEMENTS, build, describe
from gammabeta.lab.images.task import Split, Task
from gammabeta.lab.sources import load

DIGITS = {"data": "digits", "fingerprint": "scikit-learn"}
MLP = {"kind": "mlp", "depth": 2, "width": 16, "activation": "relu", "init": "matched"}
MOBILENET, VIT, RESNET = ({"kind": kind, "init": "matched"} for kind in ("mobilenet", "vit", "resnet"))


def residual(start, *, depth=4, convolutional=False):
    width = 8 if convolutional else 24
    return {"kind": "residual", "depth": depth, "width": width, "start": start, "convolutional": convolutional}


def images(shape, classes=7):
    split = Split(torch.randn(6, *shape, generator=torch.Generator().manual_seed(0)), torch.zeros(6, dtype=torch.long))
    parts = (split, split, split)
    return Task("made up", "", classes, *parts, redraw=lambda number: images(shape, classes), keeps_test=True)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (1, 3, 5)])
@pytest.mark.parametrize(
    "network", [MOBILENET, VIT, residual("fixup", convolutional=True), residual("he")], ids=lambda n: n["kind"]
)
@pytest.mark.parametrize("norm", ["batch", "none", "layer"])
def test_every_network_takes_images_of_any_size(shape, network, norm):
    task = images(shape)
    model = build(task, network, norm, 1)
    model(task.train.x_nchw).square().sum().backward()
    assert model(task.train.x_nchw).shape == (6, 7)
    if not (norm == "none" or network.get("start") == "fixup"):
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_vit_has_layer_norm_at_each_token():
    model = build(images((1, 8, 8)), VIT, "layer", 1)
    x = torch.randn(2, 32, 4, 4)
    y = model.norm(x)
    assert torch.allclose(y.mean(dim=1), torch.zeros(2, 4, 4), atol=1e-6)
    assert torch.allclose(y.var(dim=1, correction=0), torch.ones(2, 4, 4), atol=1e-3)


def test_attention_is_that_of_torchs_own_module():
    encoder = build(images((1, 8, 8)), VIT, "none", 1).encoders[0]
    ours = torch.randn(3, 32, 4, 4, generator=torch.Generator().manual_seed(1))
    reference = nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(encoder.to_qkv.weight[:, :, 0, 0])
        reference.in_proj_bias.copy_(encoder.to_qkv.bias)
        reference.out_proj.weight.copy_(encoder.project.weight[:, :, 0, 0])
        reference.out_proj.bias.copy_(encoder.project.bias)
        tokens = ours.flatten(2).transpose(1, 2)
        expected = reference(tokens, tokens, tokens)[0].transpose(1, 2).reshape(ours.shape)
        found = encoder.project(encoder._attend(encoder.to_qkv(ours)))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("network", [MLP, RESNET], ids=lambda network: network["kind"])
def test_placements_normalize_what_they_name(network):
    """In training BatchNorm's output has mean 0: before the activation, after it, or what the next layer takes."""
    task = load(DIGITS)
    x = task.train.x_nchw[:64]
    counts = set()
    for placement in PLACEMENTS:
        model = build(task, {**network, "placement": placement}, "batch", 1)
        seen, order = [], []
        for module in model.modules():
            kind = type(module).__name__
            if kind in ("Linear", "Conv2d") or "BatchNorm" in kind:
                module.register_forward_hook(
                    lambda m, given, y, kind=kind, order=order: order.append((kind, given[0], y)) and None
                )
        model(x)
        for (_, _, made), (kind, given, y) in pairwise(order):
            if "BatchNorm" in kind:
                seen.append(torch.equal(made, given))
                axes = [0, *range(2, y.dim())]
                assert float(y.mean(dim=axes).detach().abs().max()) < 1e-4
        assert all(seen) == (placement == "before")
        assert ("BatchNorm" in order[0][0]) == (placement == "input")
        counts.add(len(seen) + (placement == "input"))
    assert len(counts) == 1


def test_skipinit_and_fixup_start_from_blocks_that_do_nothing():
    task = load(DIGITS)
    x = task.train.x_nchw[:8].flatten(1)
    for start in ("skipinit", "fixup"):
        model = build(task, residual(start), "none", 1)
        h = model.stem(x)
        assert torch.equal(model.blocks(h), h)
    plain, fixed = (build(task, residual(start), "none", 1) for start in ("he", "fixup"))
    assert torch.allclose(fixed.blocks[2].layer1.weight, plain.blocks[2].layer1.weight / 2)  # 4 blocks: 1/√4
    assert not torch.allclose(plain.blocks(h), h)


@pytest.mark.parametrize(
    ("network", "norm"),
    [
        (MOBILENET, "batch"),
        (residual("fixup"), "none"),
        (residual("skipinit", convolutional=True), "none"),
        (residual("he"), "batch"),
        ({**RESNET, "placement": "input"}, "batch"),
    ],
    ids=lambda of: of if isinstance(of, str) else of.get("start", of["kind"]),
)
def test_runs_together_are_those_one_by_one(network, norm):
    several = [
        {"task": DIGITS, "network": network, "norm": norm, "rate": rate, "batch_size": 16, "steps": 4, "seed": seed}
        for rate, seed in ((0.1, 1), (0.02, 2))
    ]
    assert together.joinable(several[0])
    for one, other in zip(together.train(several), [training.train(**of) for of in several], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)  # float32, summed in another order


def test_an_unknown_network_is_refused():
    with pytest.raises(
        ValueError, match=r"^build: expected mlp, resnet, resnet20, mobilenet, vit, residual or user, got lstm$"
    ):
        build(images((1, 8, 8)), {"kind": "lstm"}, "none", 1)


def test_descriptions_differ_where_networks_do():
    every = [MLP, {**MLP, "placement": "after"}, RESNET, {**RESNET, "placement": "input"}, MOBILENET, VIT]
    every += [residual(start) for start in ("he", "skipinit", "fixup")] + [residual("he", convolutional=True)]
    assert len({describe(network) for network in every}) == len(every)
    assert describe(residual("fixup")) == "residual MLP of 4 blocks, Fixup"
