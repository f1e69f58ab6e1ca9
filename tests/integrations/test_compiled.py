"""torch.compile: results and the number of graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.integrations.models import Norms, assert_same_training, pair, resnet18
from torch import Tensor, nn


class Counter:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("training", [False, True])
def test_twenty_input_sizes_need_no_more_graphs_than_torch_s(training: bool, dynamic: bool | None) -> None:
    ours, theirs = pair(resnet18().train(training))
    counts = []
    for model in (ours, theirs):
        torch._dynamo.reset()
        counter = Counter()
        compiled = torch.compile(model, backend=counter, dynamic=dynamic, fullgraph=True)
        with torch.set_grad_enabled(training):
            for i in range(20):
                torch.manual_seed(i)
                compiled(torch.randn(2 + i % 5, 3, 32 + 16 * (i % 7), 32 + 8 * i))
        counts.append(counter.graphs)
    assert counts[0] <= counts[1]
    for (name, mine), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-2, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("norm", [nn.LayerNorm(16), nn.RMSNorm(16), nn.GroupNorm(4, 16), nn.InstanceNorm1d(16),
                                  nn.BatchNorm1d(16)], ids=lambda n: type(n).__name__)  # fmt: skip
def test_sizes_of_a_single_norm(norm: nn.Module) -> None:
    ours, theirs = pair(nn.Sequential(norm))
    counts = []
    for model in (ours, theirs):
        torch._dynamo.reset()
        counter = Counter()
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for i in range(12):
            compiled(torch.randn(2 + 37 * i, 16, 16))
        counts.append(counter.graphs)
    assert counts[0] <= counts[1]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_gives_what_torch_s_eager_model_gives(backend: str, training: bool) -> None:
    ours, theirs = pair(Norms().train(training))
    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    for size in (4, 9):
        x = torch.randn(size, 3, 10, 10)
        mine, other = compiled(x), theirs(x)
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
        for y in (mine, other):
            (y * torch.linspace(-1, 1, 8)).sum().backward()
    assert_same_training(ours, theirs, tolerance=1e-3)


def test_a_mean_far_from_zero_compiled(worth_it: int) -> None:
    """No route that compiled code takes loses the variance: GroupNorm in channels_last, BatchNorm of many values."""
    x = (torch.randn(4, 16, 24, 24) + 1000).to(memory_format=torch.channels_last)
    for norm in (nn.GroupNorm(4, 16), nn.InstanceNorm2d(16), nn.BatchNorm2d(16)):
        ours, theirs = pair(nn.Sequential(norm))
        expected = theirs.double()(x.double()).float()
        for backend in ("eager", "aot_eager", "inductor"):
            torch._dynamo.reset()
            y = torch.compile(ours, backend=backend)(x)
            # Half a unit in the last place of the input, 3e-5, is what the input itself is worth.
            assert (y - expected).abs().max() < 1e-3, (type(norm).__name__, backend)


def test_a_training_loop_compiled_as_a_whole() -> None:
    ours, theirs = pair(Norms())

    def step(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().mean()

    for model in (ours, theirs):
        torch._dynamo.reset()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        compiled = torch.compile(step, backend="aot_eager", fullgraph=True) if model is ours else step
        torch.manual_seed(1)
        for _ in range(4):
            optimizer.zero_grad()
            compiled(model, torch.randn(6, 3, 10, 10)).backward()
            optimizer.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
