"""The sources of statistics: Batch, Ghost, Renorm."""

import copy
import pickle

import pytest
import torch

import gammabeta as gb
from gammabeta.statistics import Batch, Ghost, Renorm

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
    """Where r and d are not clipped training's output is evaluation's."""
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
