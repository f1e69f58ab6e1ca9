"""torch.func, forward-mode AD, autocast and activation checkpointing, by both routes."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import gammabeta as gb
from gammabeta import functional as gf

X = torch.randn(4, 3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
R = torch.randn(4, 3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
W = torch.tensor([1.3, -0.7, 0.4], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool).unsqueeze(
    -1
)

NORMS = {
    "batch": lambda x, **kw: gf.batch_norm(x, None, None, W, W, training=True, **kw),
    "batch eval": lambda x, **kw: gf.batch_norm(x, W, W.abs(), W, W, **kw),
    "group": lambda x, **kw: gf.group_norm(x, 3, W, W, **kw),
    "instance": lambda x, **kw: gf.instance_norm(x, weight=W, bias=W, **kw),
    "layer": lambda x, **kw: gf.layer_norm(x, (5, 2), **({**kw, "mask": kw["mask"][:, :3, 0]} if "mask" in kw else kw)),
    "rms": lambda x, **kw: gf.rms_norm(x, (5, 2), **({**kw, "mask": kw["mask"][:, :3, 0]} if "mask" in kw else kw)),
}
OURS = {"plain": {}, "finish": {"residual": R, "activation": "gelu"}, "mask": {"activation": "silu", "mask": MASK}}


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("norm", NORMS)
class TestFunc:
    def test_grad_equals_backward(self, norm, ours, route):
        def loss(x):
            return NORMS[norm](x, **OURS[ours]).pow(3).sum()

        x = X.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(x), x)
        torch.testing.assert_close(grad(loss)(X), expected, rtol=1e-10, atol=1e-12)

    def test_jacobians_agree(self, norm, ours, route):
        def part(x):
            return NORMS[norm](x, **OURS[ours])[:, :, 1, 1]

        reverse = jacrev(part)(X)
        assert reverse.abs().max() > 0.01
        torch.testing.assert_close(jacfwd(part)(X), reverse, rtol=1e-10, atol=1e-12)

    def test_vmap_equals_loop(self, norm, ours, route):
        def f(x):
            return NORMS[norm](x, **OURS[ours])

        stacked = torch.stack([X, 2 * X + 1, X.flip(0)])
        expected = torch.stack([f(x) for x in stacked])
        torch.testing.assert_close(vmap(f)(stacked), expected, rtol=1e-10, atol=1e-12)

    def test_hessian_equals_double_backward(self, norm, ours, route):
        def loss(x):
            return NORMS[norm](torch.cat([x, X[:, :, 1:]], 2), **OURS[ours]).pow(3).sum()

        x = X[:, :, :1].clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
        direction = R[:, :, :1]
        (product,) = torch.autograd.grad((first * direction).sum(), x)
        expected = torch.einsum("abcdijkl,ijkl->abcd", hessian(loss)(X[:, :, :1]), direction)
        torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-10)


class TestBuffersInTransforms:
    message = (
        "running statistics: expected buffers that are arguments of the torch.func transform, got captured ones: "
        "pass the buffers in through torch.func.functional_call, or use eval() or track_running_stats=False."
    )

    @pytest.mark.parametrize("transform", ["vmap", "grad"])
    def test_captured_buffers_are_refused_and_unchanged(self, transform, route):
        layer = gb.BatchNorm2d(3).double()
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(RuntimeError) as error:
            vmap(layer)(torch.stack([X, X])) if transform == "vmap" else grad(lambda x: layer(x).pow(3).sum())(X)
        assert str(error.value) == self.message
        for name, value in layer.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_functional_call_moves_the_buffers_it_is_given(self, route):
        layer = gb.BatchNorm2d(3).double()
        parameters, buffers = dict(layer.named_parameters()), dict(layer.named_buffers())

        def loss(parameters, buffers):
            moved = {name: value.clone() for name, value in buffers.items()}
            y = functional_call(layer, (parameters, moved), (X,))
            return (y * R).sum(), moved

        gradients, moved = grad(loss, has_aux=True)(parameters, buffers)
        (layer(X) * R).sum().backward()
        torch.testing.assert_close(gradients["weight"], layer.weight.grad)
        torch.testing.assert_close(moved["running_var"], layer.running_var)
        assert moved["num_batches_tracked"] == 1

    def test_an_ensemble_under_vmap_equals_its_members(self, route):
        layers = [gb.BatchNorm2d(3, activation="silu").double() for _ in range(3)]
        for i, layer in enumerate(layers):
            nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(i))
        parameters, buffers = stack_module_state(layers)
        out = vmap(lambda p, b: functional_call(layers[0], (p, b), (X,)))(parameters, buffers)
        for i, layer in enumerate(layers):
            torch.testing.assert_close(out[i], layer(X))
            torch.testing.assert_close(buffers["running_var"][i], layer.running_var)

    def test_gradients_by_sample_equal_a_loop(self, route):
        layer = gb.BatchNorm2d(3, activation="gelu").double().eval()
        parameters = dict(layer.named_parameters())
        by_sample = vmap(grad(lambda p, x: functional_call(layer, p, (x[None],)).square().sum()), (None, 0))(
            parameters, X
        )
        for i in range(len(X)):
            (g,) = torch.autograd.grad(layer(X[i : i + 1]).square().sum(), layer.weight)
            torch.testing.assert_close(by_sample["weight"][i], g)


class TestCheckpoint:
    @pytest.mark.parametrize("reentrant", [True, False])
    @pytest.mark.parametrize("momentum", [0.1, None])
    @pytest.mark.parametrize("where", ["eager", "compiled around", "compiled inside"])
    def test_running_statistics_move_once(self, reentrant, momentum, where, route):
        torch._dynamo.reset()
        torch.manual_seed(0)
        # The gradients are sums of terms that cancel: in float32 the parts that a compiler makes round them 1e-5 apart.
        net = nn.Sequential(nn.Conv2d(3, 4, 2), gb.BatchNorm2d(4, momentum=momentum, activation="relu")).double()
        plain = copy.deepcopy(net)
        x = torch.randn(4, 3, 6, 6, dtype=torch.float64, requires_grad=True)
        block = torch.compile(net, backend="aot_eager") if where == "compiled inside" else net

        def forward(x):
            return checkpoint(block, x, use_reentrant=reentrant).square().sum()

        forward = torch.compile(forward, backend="aot_eager") if where == "compiled around" else forward
        for _ in range(2):
            forward(x).backward()
            plain(x.detach()).square().sum().backward()
        assert net[1].num_batches_tracked == 2
        torch.testing.assert_close(net[1].running_mean, plain[1].running_mean)
        torch.testing.assert_close(net[1].running_var, plain[1].running_var)
        torch.testing.assert_close(net[0].weight.grad, plain[0].weight.grad)

    def test_torch_moves_them_twice(self):
        """The reason for the difference (pytorch#96136); this test fails once torch has fixed it."""
        norm = nn.BatchNorm2d(3)
        checkpoint(norm, X.float().requires_grad_(), use_reentrant=False).sum().backward()
        assert norm.num_batches_tracked == 2

    def test_the_sign_of_a_recomputation_still_holds(self):
        from gammabeta.running_statistics import recomputing

        seen = []

        def block(x):
            seen.append(recomputing())
            return x.sin()

        checkpoint(block, X.clone().requires_grad_(), use_reentrant=False).sum().backward()
        assert seen == [False, True]


class TestAutocast:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("activation", [None, "relu"])
    def test_a_block_under_autocast_trains_with_float32_statistics(self, dtype, activation, route):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), gb.BatchNorm2d(8, activation=activation), nn.Conv2d(8, 8, 1), gb.GroupNorm(2, 8)
        )
        exact = copy.deepcopy(net).double()
        x = torch.randn(8, 3, 6, 6)
        with torch.autocast("cpu", dtype=dtype):
            y = net(x)
        y.float().square().mean().backward()
        exact(x.double()).square().mean().backward()
        assert y.dtype == dtype
        assert net[1].running_var.dtype == torch.float32
        # The convolution rounds its inputs and output to the 8 bits of bfloat16: some 2^-7 of what is summed.
        torch.testing.assert_close(net[1].running_var.double(), exact[1].running_var, rtol=2e-2, atol=1e-4)
        torch.testing.assert_close(y.double(), exact(x.double()), rtol=0.1, atol=0.1)
