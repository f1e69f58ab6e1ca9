"""torch.nn.TransformerEncoder, whose fast path in evaluation computes its LayerNorms itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import gammabeta as gb


def encoder(norm_first: bool) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    net = nn.TransformerEncoder(layer, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


PADDED = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]).bool()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("padding", [PADDED, None], ids=["padded", "whole"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adopted_in_evaluation_and_training(dtype: torch.dtype, norm_first: bool, padding: torch.Tensor | None) -> None:
    """As torch's in float64, with and without gradients; the mask makes the fast path take nested tensors."""
    theirs = encoder(norm_first).to(dtype)
    ours = copy.deepcopy(theirs).float()
    gb.adopt(ours)
    ours.to(dtype)
    assert ours.layers[0].norm1.weight.dtype == torch.float32
    exact = copy.deepcopy(theirs).double()
    x = torch.randn(3, 5, 16, dtype=dtype)
    expected = exact.eval()(x.double(), src_key_padding_mask=padding)
    real = ~PADDED if padding is not None else torch.ones_like(PADDED)
    tolerance = 1e-5 if dtype == torch.float32 else 0.15
    for training in (True, False):
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                y = ours.train(training)(x, src_key_padding_mask=padding)
            assert y.dtype == dtype
            assert (y.double() - expected)[real].abs().max() < tolerance


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "leaky_relu"])
@pytest.mark.parametrize("padding", [PADDED, None], ids=["padded", "whole"])
def test_an_activation_is_not_dropped(padding: torch.Tensor | None, activation: str) -> None:
    net = encoder(False).eval()
    for layer in net.layers:
        own = gb.LayerNorm(16, activation=activation)
        own.load_state_dict(layer.norm1.state_dict())
        layer.norm1 = own
    x = torch.randn(3, 5, 16)
    expected = net(x, src_key_padding_mask=padding)  # with gradients, and so not by the fast path
    real = ~PADDED if padding is not None else torch.ones_like(PADDED)
    for one in (net, copy.deepcopy(net)):
        with torch.no_grad():
            y = one(x, src_key_padding_mask=padding)
        torch.testing.assert_close(y[real], expected[real], rtol=1e-4, atol=1e-5)


def test_without_an_activation_the_fast_path_stays() -> None:
    net = encoder(False).eval()
    gb.adopt(net)
    assert not any(module._forward_hooks for module in net.modules())
    gb.adopt(net.bfloat16(), keep_float32=False)
    net.bfloat16()
    released = encoder(False)
    gb.adopt(released)
    released.bfloat16()
    assert any(module._forward_hooks for module in released.modules())
    gb.release(released)
    assert not any(module._forward_hooks for module in released.modules())
