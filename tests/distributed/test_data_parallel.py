"""Synced under DistributedDataParallel and FSDP2: training is that of one process on the whole batch."""

import functools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tests.distributed.world import once
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import gammabeta as gb
from gammabeta.statistics import Batch, Synced

PROCESSES = 2
SIZES = (5, 3)
STEPS = 3
WAYS = (
    "ddp", "fsdp2", "fsdp2, statistics accumulated", "ddp, recomputed", "fsdp2, recomputed",
    "fsdp2, layer by layer, recomputed",
)  # fmt: skip


class Network(nn.Module):
    def __init__(self, statistics):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.norm = gb.BatchNorm2d(4, statistics=statistics, activation="relu")
        self.second = nn.Conv2d(4, 4, 3, bias=False)
        self.last = gb.BatchNorm2d(4, statistics=statistics)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        y = self.norm(self.conv(x))
        return self.out(self.last(self.second(y), y[:, :, 1:-1, 1:-1]).mean((2, 3)))


def network(statistics):
    torch.manual_seed(4)
    net = Network(statistics).double()
    for norm in (net.norm, net.last):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return net


def batches():
    generator = torch.Generator().manual_seed(9)
    for _ in range(STEPS):
        x = torch.randn(sum(SIZES), 2, 8, 8, dtype=torch.float64, generator=generator) * 3
        yield x, torch.randint(3, (sum(SIZES),), generator=generator)


def train(net, own, share, accumulate=False):
    """Take some steps of SGD on `own` of each batch; the loss is divided by the whole batch's size, times `share`."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    outputs = []
    for x, labels in batches():
        optimizer.zero_grad()
        if accumulate:
            with gb.accumulate_statistics(net):
                y = net(x[own])
        else:
            y = net(x[own])
        (F.cross_entropy(y, labels[own], reduction="sum") * (share / sum(SIZES))).backward()
        optimizer.step()
        outputs.append(y.detach())
    return outputs


def job():
    own = slice(0, SIZES[0]) if dist.get_rank() == 0 else slice(SIZES[0], sum(SIZES))
    return {way: result(way, own) for way in WAYS}


def result(way, own):
    net = network(Synced())
    if "recomputed" in way:
        gb.recompute(net)
    if way.startswith("ddp"):
        trained = nn.parallel.DistributedDataParallel(net)
    else:
        mesh = init_device_mesh("cpu", (PROCESSES,))
        # The norms as a separate group, as a network in 16 bits needs it: they stay float32.
        if "layer by layer" in way:  # each layer's parameters are freed after its forward, until its own backward
            for layer in (net.conv, net.norm, net.second, net.last, net.out):
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        else:
            fully_shard([net.norm, net.last], mesh=mesh)
        trained = fully_shard(net, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in net.parameters())
    # Both average gradients over the processes; times their number that is the sum.
    outputs = train(trained, own, PROCESSES, accumulate="accumulated" in way)
    state = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in net.state_dict().items()}
    return outputs, {name: tensor.detach().clone() for name, tensor in state.items()}


def found():
    return once("tests.distributed.test_data_parallel:job", PROCESSES)


@functools.cache
def one_process():
    net = network(Batch())
    outputs = train(net, slice(None), 1)
    return outputs, net.state_dict()


@pytest.mark.parametrize("way", WAYS)
def test_training_is_that_of_one_process_on_the_whole_batch(way):
    outputs, state = one_process()
    for step in range(STEPS):
        ours = torch.cat([results[way][0][step] for results in found()])
        # After three steps, roundings in another order have gone through the network.
        torch.testing.assert_close(ours, outputs[step], rtol=1e-11, atol=1e-11)
    for results in found():
        assert list(results[way][1]) == list(state)
        for name, tensor in state.items():
            torch.testing.assert_close(results[way][1][name], tensor, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_recomputing_gives_the_same_bits(way):
    for results in found():
        for name, tensor in results[way][1].items():
            assert torch.equal(results[f"{way}, recomputed"][1][name], tensor), name


def test_training_goes_somewhere():
    """Otherwise the test above would compare values that nothing has moved."""
    _, state = one_process()
    before = network(Batch()).state_dict()
    assert all(not torch.equal(before[name], tensor) for name, tensor in state.items())
