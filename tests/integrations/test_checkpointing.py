"""Activation checkpointing, torch.func and forward-mode AD around our layers."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.integrations.models import Norms, assert_same_training, pair
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint, checkpoint_sequential


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_checkpointed_model_moves_its_statistics_once(reentrant: bool, compiled: bool) -> None:
    ours, theirs = pair(Norms(momentum=None).double())
    run = torch.compile(ours, backend="aot_eager") if compiled else ours
    for i in range(3):
        x = torch.randn(5, 3, 10, 10, dtype=torch.float64) + i
        checkpoint(run, x.clone().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
        theirs(x.clone().requires_grad_()).square().sum().backward()
    # InstanceNorm's averages move as torch's do: twice. They are compared elsewhere.
    for model in (ours, theirs):
        model.tracked = nn.Identity()
    assert_same_training(ours, theirs, tolerance=1e-9)


@pytest.mark.parametrize("reentrant", [True, False])
def test_nested_and_sequential(reentrant: bool) -> None:
    ours, theirs = pair(
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4))
    )
    x = torch.randn(12, 6)
    for _ in range(2):
        inner = lambda z: checkpoint_sequential(ours, 2, z, use_reentrant=reentrant)  # noqa: E731
        checkpoint(inner, x.clone().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
        theirs(x.clone().requires_grad_()).square().sum().backward()
    assert ours[1].num_batches_tracked == 2
    assert_same_training(ours, theirs)


def test_functorch() -> None:
    ours, theirs = pair(Norms().eval())
    x = torch.randn(3, 3, 10, 10)

    def loss(model: nn.Module, parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, parameters, (x,)).square().sum()

    results = []
    for model in (ours, theirs):
        parameters = {k: p.detach() for k, p in model.named_parameters()}
        gradients = grad(lambda p, model=model: loss(model, p, x))(parameters)
        per_sample = vmap(grad(lambda p, one, model=model: loss(model, p, one.unsqueeze(0))), in_dims=(None, 0))(
            parameters, x
        )
        jacobian = jacrev(lambda one, model=model: loss(model, dict(model.named_parameters()), one.unsqueeze(0)))(x[0])
        tangent = jvp(lambda one, model=model: model(one), (x,), (torch.ones_like(x),))
        results.append([*gradients.values(), *per_sample.values(), jacobian, *tangent])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def test_double_backward() -> None:
    ours, theirs = pair(Norms().double())
    penalties = []
    for model in (ours, theirs):
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        penalties.append(x.grad)
    torch.testing.assert_close(*penalties, rtol=1e-6, atol=1e-8)
    assert_same_training(ours, theirs, tolerance=1e-6)


def test_copies_stay_apart() -> None:
    ours, _ = pair(Norms())
    other = copy.deepcopy(ours)
    ours(torch.randn(4, 3, 10, 10))
    assert other.batch.num_batches_tracked == 0
