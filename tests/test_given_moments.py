"""The channel norm with moments taken before, in one process: it equals the channel norm."""

import pytest
import torch

import gammabeta
from gammabeta.autograd import channel_moments, channel_norm, channel_norm_given
from gammabeta.reference import OpFinish

ACTIVATIONS = ("none", "silu")


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    x, residual = (torch.randn(5, 3, 4, dtype=dtype, generator=generator) for _ in range(2))
    weight, bias = (torch.randn(3, dtype=dtype, generator=generator) for _ in range(2))
    mask = torch.rand(5, 4, generator=generator) > 0.3
    return [t.requires_grad_() for t in (x, weight, bias, residual)], mask


def given(x, weight, bias, residual, mask, activation):
    moments = channel_moments(x, mask)
    return channel_norm_given(x, moments, (weight, bias), OpFinish(residual, mask, 0.1, activation, 0.01))


def taken(x, weight, bias, residual, mask, activation):
    return channel_norm(x, (weight, bias), OpFinish(residual, mask, 0.1, activation, 0.01))[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_output_and_gradients_are_the_channel_norm_s(route, activation, masked, with_residual, affine):
    found = []
    for norm in (given, taken):
        (x, weight, bias, residual), mask = tensors()
        chosen = [x, *((weight, bias) if affine else ()), *((residual,) if with_residual else ())]
        y = norm(
            x,
            weight if affine else None,
            bias if affine else None,
            residual if with_residual else None,
            mask if masked else None,
            activation,
        )
        plain = torch.autograd.grad(y.pow(3).sum(), chosen, retain_graph=True)
        gradients = torch.autograd.grad(y.pow(3).sum(), chosen, create_graph=True)
        again = torch.autograd.grad(sum(g.square().sum() for g in gradients), chosen)
        found.append((y, *gradients, *plain, *again))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("order", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_finite_differences(order):
    leaves, mask = tensors()
    assert order(lambda *leaves: given(*leaves, mask, "silu"), leaves)


def test_under_a_transform_and_forward_mode():
    leaves, mask = tensors()
    for norm in (given, taken):
        f = lambda x, norm=norm: norm(x, *leaves[1:], mask, "silu").pow(3).sum()  # noqa: E731
        x = leaves[0].detach()
        gradient = torch.func.grad(f)(x)
        forward = torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]
        torch.testing.assert_close(forward, gradient.sum(), rtol=1e-10, atol=1e-10)
        if norm is given:
            ours = gradient
    torch.testing.assert_close(ours, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernels", [True, False])
def test_it_compiles_as_one_graph(kernels, monkeypatch):
    if kernels and not gammabeta.ops.has_kernel("cpu"):
        pytest.skip("no kernels are built")
    torch.compiler.reset()
    monkeypatch.setitem(gammabeta.ops._has_kernel, "cpu", kernels)
    leaves, mask = tensors()
    eager = given(*leaves, mask, "silu")
    compiled = torch.compile(given, backend="aot_eager", fullgraph=True)(*leaves, mask, "silu")
    torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12)
    for ours, expected in zip(*(torch.autograd.grad(y.pow(3).sum(), leaves) for y in (compiled, eager)), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_only_what_is_asked_for_gets_a_gradient():
    (x, weight, bias, residual), mask = tensors()
    x, residual = x.detach(), residual.detach()
    y = given(x, weight, bias, residual, mask, "silu")
    (expected,) = torch.autograd.grad(taken(x, weight, bias, residual, mask, "silu").sum(), weight)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), weight)[0], expected, rtol=1e-12, atol=1e-12)
    assert not given(x, weight.detach(), bias.detach(), residual, mask, "silu").requires_grad


def test_it_keeps_x_and_the_residual_and_no_copy():
    (x, weight, bias, residual), mask = tensors(torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        given(x, weight, bias, residual, mask, "silu")
    assert {t.data_ptr() for t in saved if t.numel() == x.numel()} == {x.data_ptr(), residual.data_ptr()}
