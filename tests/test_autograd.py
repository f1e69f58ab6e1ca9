"""What the differentiable ops save, and what they do not change."""

import pytest
import torch
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import gammabeta as gb
from gammabeta import functional as gf


@pytest.fixture(autouse=True)
def _ours(monkeypatch):
    monkeypatch.setattr("gammabeta.ops.has_kernel", lambda device: True)
    monkeypatch.setattr(gf.Finish, "left_to_torch", lambda self, x: False)


X, R = torch.randn(16, 8, 32, requires_grad=True), torch.randn(16, 8, 32, requires_grad=True)
W, B = torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True)
MASK = torch.rand(16, 32) > 0.2
V = torch.randn(32, requires_grad=True)
CALLS = {
    "batch": lambda **kw: gf.batch_norm(X, None, None, W, B, True, **kw),
    "batch eval": lambda **kw: gf.batch_norm(X, torch.zeros(8), torch.ones(8), W, B, **kw),
    "group": lambda **kw: gf.group_norm(X, 2, W, B, **kw),
    "layer": lambda **kw: gf.layer_norm(X, (32,), V, V, **{**kw, **({"mask": MASK[:, :8]} if "mask" in kw else {})}),
    "rms": lambda **kw: gf.rms_norm(X, (32,), V, 1e-5, **{**kw, **({"mask": MASK[:, :8]} if "mask" in kw else {})}),
}


def kept(call):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = call()
    return y, saved


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("ours", "large"),
    [
        ({}, 1),
        ({"activation": "gelu"}, 1),
        ({"residual": R}, 1),
        ({"residual": R, "activation": "relu"}, 2),
        ({"mask": MASK}, 1),
    ],
)
def test_keeps_x_itself_and_the_residual_only_for_an_activation(name, ours, large):
    y, saved = kept(lambda: CALLS[name](**ours))
    sizes = [t for t in saved if t.numel() == X.numel()]
    assert len(sizes) == large
    assert all(t.data_ptr() in (X.data_ptr(), R.data_ptr()) for t in sizes)
    rest = [t for t in saved if t.numel() != X.numel()]
    assert sum(t.numel() * t.element_size() for t in rest) <= 16 * 8 * 16 + 512  # vectors and the mask
    y.sum().backward()


def test_a_sum_keeps_the_sum_alone():
    (y, total), saved = kept(lambda: gf.add_layer_norm(X, R, (32,), V, V))
    assert [t.data_ptr() for t in saved if t.numel() == X.numel()] == [total.data_ptr()]
    (y + total).sum().backward()


def test_the_residual_may_be_x_itself():
    x = X.detach().clone().requires_grad_()
    gf.batch_norm(x, None, None, W, B, True, residual=x, activation="silu").square().sum().backward()
    other = X.detach().clone().requires_grad_()
    torch.nn.functional.silu(
        torch.nn.functional.batch_norm(other, None, None, W, B, True) + other
    ).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_only_what_is_asked_for_gets_a_gradient():
    x = X.detach()
    y = gf.batch_norm(x, None, None, W.detach(), B, True, residual=R.detach(), activation="relu")
    (g,) = torch.autograd.grad(y.sum(), B)
    assert g.shape == (8,)
    assert not gf.batch_norm(x, None, None, W.detach(), B.detach(), True).requires_grad


def test_an_input_that_changed_before_backward_is_noticed():
    x = X.detach().clone()
    y = gf.batch_norm(x, None, None, W, B, True)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_update_bn_averages_the_batches():
    """torch's own recalibration sets momentum to None and averages: with ours it does so over finite batches."""
    data = torch.randn(40, 3)
    data[0, 1] = torch.nan
    layer = gb.BatchNorm1d(3)
    update_bn(DataLoader(TensorDataset(data), batch_size=10), layer)
    torch.testing.assert_close(layer.running_mean[1], data[10:, 1].mean())
    torch.testing.assert_close(layer.running_mean[0], data[:, 0].mean())
    assert layer.momentum == 0.1


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (33, 40, 9, 9), (4, 4, 300)], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_with_given_statistics_what_is_not_finite_reaches_no_gradient_of_x(last, shape, activation, value, route):
    """∂y/∂x = γ/σ·act', whatever x is: values left out of the loss get a gradient of 0, as in torch's layer."""
    if last and len(shape) != 4:
        return
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(shape, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        x[0, :, ...] = value
        x.requires_grad_()
        layer = gb.BatchNorm2d(shape[1], activation=activation).eval().requires_grad_(False)
        layer._check_input_dim = lambda *_: None
        layer.running_var.fill_(4.0)
        y = layer(x)
        torch.where(torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) > 0, y, 0.0).sum().backward()
        z = (x.detach().double() / (4 + 1e-5) ** 0.5)[1:].requires_grad_()
        expected = z if activation is None else getattr(torch.nn.functional, activation)(z)
        (of_z,) = torch.autograd.grad(expected.sum(), z)
        if activation in (None, "relu"):
            assert torch.equal(x.grad[0], torch.zeros_like(x.grad[0]))
        torch.testing.assert_close(
            x.grad[1:].double(), of_z / (4 + 1e-5) ** 0.5, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2
        )
