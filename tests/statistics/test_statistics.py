"""The sources of statistics: Batch, Ghost, Renorm, Running."""

import copy
import pickle
import re

import pytest
import torch

import gammabeta as gb
from gammabeta.statistics import Batch, Ghost, Renorm, Running

X = torch.randn(10, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 3


def layer(source, **options):
    norm = gb.BatchNorm1d(3, statistics=source, **options).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
        norm.running_mean.uniform_(1, 4, generator=generator)
        norm.running_var.uniform_(1, 6, generator=generator)
    return norm


@pytest.mark.parametrize("source", [Ghost(4), Renorm(2.0, 1.0)])
class TestEverySource:
    def test_shows_and_survives(self, source):
        norm = layer(source)
        assert f"statistics={source}" in repr(norm)
        for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
            assert other.statistics == source
            assert torch.equal(other(X), copy.deepcopy(norm)(X))
        assert list(norm.state_dict()) == list(gb.BatchNorm1d(3).state_dict())

    def test_evaluation_is_that_of_batch(self, source):
        assert torch.equal(layer(source).eval()(X), layer(Batch()).eval()(X))

    def test_running_statistics_are_those_of_the_whole_batch(self, source):
        norm, whole = layer(source), layer(Batch())
        norm(X)
        whole(X)
        torch.testing.assert_close(norm.running_mean, whole.running_mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(norm.running_var, whole.running_var, rtol=1e-12, atol=0)

    def test_gradients(self, source):
        norm = layer(source)
        residual = torch.randn_like(X)

        def f(x, weight, bias, residual):
            fresh = copy.deepcopy(norm)
            del fresh.weight, fresh.bias
            fresh.weight, fresh.bias, fresh.activation = weight, bias, "silu"
            return fresh(x, residual)

        if isinstance(source, Ghost):  # Renorm's r and d are constants to the backward, so not to finite differences
            tensors = [t.detach().clone().requires_grad_() for t in (X, norm.weight, norm.bias, residual)]
            assert torch.autograd.gradcheck(f, tensors)


def test_ghost_normalizes_each_part_alone():
    norm = layer(Ghost(4))
    expected = torch.cat([layer(Batch())(part) for part in X.split(4)])
    torch.testing.assert_close(norm(X), expected, rtol=1e-12, atol=1e-12)


def test_ghost_of_the_batch_or_more_is_batch_bit_by_bit():
    for size in (10, 11):
        ghost, batch = layer(Ghost(size)), layer(Batch())
        assert torch.equal(ghost(X), batch(X))
        assert torch.equal(ghost.running_var, batch.running_var)


def test_renorm_against_its_paper():
    norm = layer(Renorm(1.2, 0.3))
    mean, std = norm.running_mean.clone(), (norm.running_var + norm.eps).sqrt()
    batch_mean, batch_std = X.mean((0, 2)), (X.var((0, 2), correction=0) + norm.eps).sqrt()
    r = (batch_std / std).clamp(1 / 1.2, 1.2)
    d = ((batch_mean - mean) / std).clamp(-0.3, 0.3)
    assert (r * std != batch_std).any()
    assert (d.abs() == 0.3).any()
    x = X.clone().requires_grad_()
    xhat = (x - x.mean((0, 2))[:, None]) / (x.var((0, 2), correction=0) + norm.eps).sqrt()[:, None]
    expected = (xhat * r[:, None] + d[:, None]) * norm.weight[:, None] + norm.bias[:, None]
    ours = X.clone().requires_grad_()
    y = norm(ours)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(X)
    (expected_gradient,) = torch.autograd.grad((expected * direction).sum(), x)
    (gradient,) = torch.autograd.grad((y * direction).sum(), ours)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def test_renorm_within_reach_is_the_running_statistics():
    """Where r and d are not clipped, the output in training is that in evaluation."""
    training = layer(Renorm(1e6, 1e6))
    evaluating = copy.deepcopy(training).eval()
    torch.testing.assert_close(training(X), evaluating(X), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("source", [Ghost(4), Renorm()])
def test_masks_count(source):
    mask = torch.rand(10, 4, generator=torch.Generator().manual_seed(2)) > 0.3
    junk = torch.where(mask.unsqueeze(1), X, torch.nan)
    assert torch.equal(layer(source)(junk, mask=mask), layer(source)(torch.where(mask.unsqueeze(1), X, 7.0), mask=mask))
    norm, whole = layer(source, momentum=1.0), layer(Batch(), momentum=1.0)
    norm(junk, mask=mask)
    whole(X, mask=mask)
    torch.testing.assert_close(norm.running_var, whole.running_var, rtol=1e-12, atol=0)


class TestRenormSchedule:
    """r_max and d_max follow num_batches_tracked, which is in the state_dict."""

    def test_warm_up_is_batch(self):
        norm, batch = layer(Renorm(2.0, 1.0, warmup=2)), layer(Batch())
        for _ in range(2):
            torch.testing.assert_close(norm(X), batch(X), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(norm(X), batch(X), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("forwards", [0, 2, 3, 5, 6, 9, 40])
    def test_the_bounds_grow_linearly(self, forwards):
        norm = layer(Renorm(1.6, 0.5, warmup=2, r_steps=4, d_steps=8))
        norm.num_batches_tracked.fill_(forwards)
        since = forwards - 2 + 1
        r_max = 1 + 0.6 * min(max(since / 4, 0), 1)
        d_max = 0.5 * min(max(since / 8, 0), 1)
        same = copy.deepcopy(norm)
        same.statistics = Renorm(r_max, d_max)
        torch.testing.assert_close(norm(X), same(X), rtol=1e-12, atol=1e-12)

    def test_a_checkpoint_goes_on_where_it_stopped(self):
        source = Renorm(2.0, 1.0, warmup=1, r_steps=3, d_steps=3)
        norm = layer(source)
        for _ in range(2):
            norm(X)
        other = layer(source)
        other.load_state_dict(norm.state_dict())
        assert torch.equal(norm(X + 1), other(X + 1))

    def test_it_compiles_once(self):
        torch._dynamo.reset()
        norm = layer(Renorm(2.0, 1.0, warmup=1, r_steps=3, d_steps=2))
        eager, graphs = copy.deepcopy(norm), []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        compiled = torch.compile(norm, backend=backend, fullgraph=True)
        for i in range(5):
            torch.testing.assert_close(compiled(X + i), eager(X + i), rtol=1e-12, atol=1e-12)
        assert len(graphs) == 1

    def test_compiled_gradients_are_those_of_eager(self):
        """They do not use the running statistics that the forward has moved."""
        torch._dynamo.reset()
        eager = layer(Renorm(2.0, 1.0, warmup=1, r_steps=3, d_steps=2))
        norm = copy.deepcopy(eager)
        compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
        for i in range(4):
            gradients = []
            for module, forward in ((eager, eager), (norm, compiled)):
                x = (X + i).requires_grad_()
                module.zero_grad()
                forward(x).pow(3).sum().backward()
                gradients.append([x.grad, *(p.grad for p in module.parameters())])
            for a, b in zip(*gradients, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

    def test_settings_that_cannot_be(self):
        with pytest.raises(ValueError, match=r"^Renorm: expected r_max ≥ 1 and d_max ≥ 0, got 0\.5 and 5\.0\.$"):
            Renorm(0.5)
        text = "^Renorm: expected warmup, r_steps and d_steps of at least 0 forwards, got 0, -1 and 0.$"
        with pytest.raises(ValueError, match=text):
            Renorm(r_steps=-1)


def test_renorm_of_convolutions_under_autocast_trains():
    torch.manual_seed(0)
    norm = gb.BatchNorm2d(4, statistics=Renorm(1.5, 0.5), activation="relu")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), norm)
    exact = copy.deepcopy(net).double()
    x = torch.randn(8, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    assert norm.running_var.dtype == torch.float32
    y.float().square().mean().backward()
    exact(x.double()).square().mean().backward()
    # bfloat16 rounds to 3 digits, and the convolution's sums with it.
    torch.testing.assert_close(net[0].weight.grad, exact[0].weight.grad.float(), rtol=0.1, atol=0.02)
    torch.testing.assert_close(norm.running_var, exact[1].running_var.float(), rtol=0.02, atol=0)


class TestRunning:
    def test_training_is_evaluation_and_nothing_moves(self):
        norm = layer(Running(), activation="relu")
        evaluating = copy.deepcopy(norm).eval()
        before = {k: v.clone() for k, v in norm.state_dict().items()}
        assert torch.equal(norm(X), evaluating(X))
        assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())

    def test_statistics_are_constants_to_the_gradient(self):
        norm = layer(Running())
        x = X.clone().requires_grad_()
        norm(x).sum().backward()
        slope = norm.weight / (norm.running_var + norm.eps).sqrt()
        torch.testing.assert_close(x.grad, slope[:, None].expand_as(x), rtol=1e-12, atol=0)

    def test_one_value_per_channel_is_enough(self):
        norm = layer(Running())
        assert torch.equal(norm(X[:1, :, :1]), copy.deepcopy(norm).eval()(X[:1, :, :1]))

    def test_shows_and_survives(self):
        norm = layer(Running())
        assert "statistics=Running()" in repr(norm)
        assert pickle.loads(pickle.dumps(norm)).statistics == copy.deepcopy(norm).statistics == Running()

    def test_update_bn_leaves_it(self):
        net = torch.nn.Sequential(torch.nn.Linear(3, 3), gb.BatchNorm1d(3, statistics=Running()), gb.BatchNorm1d(3))
        with torch.no_grad():
            net[1].running_mean.normal_()
        before = net[1].running_mean.clone()
        torch.optim.swa_utils.update_bn(torch.randn(5, 8, 3).unbind(), net)
        assert torch.equal(net[1].running_mean, before)
        assert net[1].momentum == 0.1
        assert net[2].num_batches_tracked == 5

    def test_a_layer_without_running_statistics(self):
        text = (
            "Running: expected a layer with running statistics, got one without: build it with "
            "track_running_stats=True, or give it another source, gammabeta.statistics.Batch()."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            gb.BatchNorm1d(3, statistics=Running(), track_running_stats=False)(X.float())
