"""Renorm over all processes' batches, and their accumulated statistics, equal one process on the whole batch."""

import functools

import pytest
import torch
import torch.distributed as dist
from tests.distributed.test_traffic import GATHER, REDUCE, Collectives
from tests.distributed.world import run

import gammabeta as gb
from gammabeta.statistics import Batch, Renorm, Synced

SIZES = (5, 0, 3)
BOUNDS = {"r_max": 1.2, "d_max": 0.3}
# Sums over some hundred values in another order, in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def batch():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(sum(SIZES), 4, 6, dtype=torch.float64, generator=generator) * 2 + 3
    direction = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    mask = torch.rand(x.shape[0], 6, generator=generator) > 0.3
    # The processes' means lie apart.
    return x + torch.arange(len(x), dtype=torch.float64).reshape(-1, 1, 1), direction, mask


def layer(source):
    norm = gb.BatchNorm1d(4, statistics=source, activation="silu").double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_(generator=generator)
        norm.running_var.uniform_(1, 6, generator=generator)
    return norm


def results(norm, x, direction, mask):
    x = x.clone().requires_grad_()
    y = norm(x, mask=mask)
    (y * direction).sum().backward()
    running = torch.stack((norm.running_mean, norm.running_var))
    return {"y": y.detach(), "g_x": x.grad, "g_weight": norm.weight.grad, "g_bias": norm.bias.grad, "running": running}


def job():
    rank = dist.get_rank()
    own = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
    x, direction, mask = (t[own] for t in batch())
    with Collectives() as seen:
        found = results(layer(Renorm(**BOUNDS, over=Synced())), x, direction, mask)
    found["collectives"] = [name for name, _ in seen.seen]
    norm = layer(Synced())
    with gb.accumulate_statistics(norm), torch.no_grad():
        for part in (x[:2], x[2:]):
            norm(part)
    found["accumulated"] = torch.stack((norm.running_mean, norm.running_var))
    return found


@functools.cache
def found():
    return run("tests.distributed.test_renorm:job", len(SIZES))


@pytest.mark.parametrize("what", ["y", "g_x", "g_weight", "g_bias", "running"])
def test_renorm_over_all_processes(what):
    x, direction, mask = batch()
    whole = results(layer(Renorm(**BOUNDS)), x, direction, mask)[what]
    assert not torch.allclose(whole, results(layer(Batch()), x, direction, mask)[what]) or what == "running"
    parts = [result[what] for result in found()]
    if what in ("y", "g_x"):
        torch.testing.assert_close(torch.cat(parts), whole, **EXACT)
    elif what == "running":
        for part in parts:
            torch.testing.assert_close(part, whole, **EXACT)
    else:
        torch.testing.assert_close(sum(parts), whole, **EXACT)


def test_renorm_makes_one_collective_forward_and_one_backward():
    assert [result["collectives"] for result in found()] == [[GATHER, REDUCE]] * len(SIZES)


def test_micro_batches_of_all_processes_move_the_running_statistics_as_one_batch():
    norm = layer(Batch())
    norm(batch()[0])
    for result in found():
        torch.testing.assert_close(result["accumulated"], torch.stack((norm.running_mean, norm.running_var)), **EXACT)
