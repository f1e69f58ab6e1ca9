"""recompute on real models: the same gradients and buffers bit by bit, and fewer bytes kept.

The default run takes a few models; GAMMABETA_ZOO=1 takes all of tests/zoo.py (about ten minutes).
"""

import copy
import os

import pytest
import torch
from tests.zoo import NAMES, QUICK, build
from torch import nn

import gammabeta as gb
from gammabeta.introspection.observe import tensors_in

FEW = (*QUICK, "torchvision densenet121", "torchvision efficientnet_b0", "torchvision resnet50", "timm mobilenetv2_050")
# Its forward draws masks and skips layers by numpy's generator.
RANDOM = {"transformers Wav2Vec2ConformerModel"}
# At most that share of the bytes was kept; convolutions read most of what norms hand on.
AT_MOST = 0.9


def trained(model, inputs):
    """Return the gradients and buffers after one training forward and backward."""
    torch.manual_seed(1)  # dropout and stochastic depth
    outputs = tensors_in(model(**inputs) if isinstance(inputs, dict) else model(inputs))
    sum(y.square().mean() for y in outputs if y.requires_grad).backward()
    return [p.grad for p in model.parameters()] + list(model.buffers())


def same(a, b):
    """Whether two tensors have the same bits; NaN, of a network without training, is itself."""
    return (a is None and b is None) or torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("fused", [False, True], ids=["torch", "adopted and fused"])
@pytest.mark.parametrize("name", NAMES if os.environ.get("GAMMABETA_ZOO") else FEW)
def test_a_real_model_trains_with_the_same_bits(name, fused):
    if name in RANDOM:
        pytest.skip("its forward differs from call to call")
    model, (inputs, _) = build(name)
    assert isinstance(model, nn.Module)
    model.train()
    if fused:
        gb.adopt(model)
        gb.fuse(model, inputs)
    other = copy.deepcopy(model)
    kept = gb.recompute(other, inputs).entries[0].numbers
    assert kept["with"] < AT_MOST * kept["bytes kept without"]
    found, expected = trained(other, inputs), trained(model, inputs)
    assert len(found) == len(expected) > 0
    assert all(map(same, found, expected))


def test_at_least_twelve_are_looked_at():
    assert len(set(FEW)) >= 12
    assert set(FEW) <= set(NAMES)
