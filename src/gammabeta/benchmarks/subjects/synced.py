"""What Synced costs over Batch, in 1, 2 and 4 processes of this machine over gloo.

Every process has a batch of the row's shape, and all do the same at once; one of them is timed. With more processes
than cores they take turns, for Batch too. So read the difference of the two: it is the cost of exchanging statistics
and of waiting for each other. It is that of this machine, where no network is between the processes. One layer is a
forward and a backward in training. A step is forward, loss, backward and SGD of a network of 8 convolutions with norms,
each process with its own network. Gradients are not averaged, which would cost the same for both.

The traffic, per process, layer and step, for C channels (a test checks ours): Synced sends 2C + 2 values in one
all-gather forward and 2C in one all-reduce backward. torch's SyncBatchNorm refuses CPU tensors and so does not take
part. By its source it sends 2C + 1 and 2C values by the same two collectives; our additional value keeps the count
exact above 2^24. torch's takes its moments apart into mean and 1/√(σ² + ε), and waits on the host for the counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from gammabeta.benchmarks.contest import OURS, TORCH, Call, Field, Row
from gammabeta.benchmarks.world import World
from gammabeta.layers.batch_norm import BatchNorm2d
from gammabeta.statistics import Batch, Statistics, Synced

UNIT = "µs"
NAMES = {OURS: "Synced", TORCH: "Batch"}

PROCESSES = (1, 2, 4)
LAYERS = ((8, 64, 56, 56), (8, 256, 14, 14), (8, 512, 7, 7))
IMAGES = (8, 3, 32, 32)
DEPTH, WIDTH = 8, 32


def missing() -> str | None:
    if dist.is_available() and dist.is_gloo_available():
        return None
    return "it needs a torch with torch.distributed and gloo"


def rows(quick: bool) -> list[Row]:
    """Return one layer and one step per number of processes; quick: the smallest layer in one and two."""
    if quick:
        return [_row("forward and backward", LAYERS[-1], one_layer, size) for size in PROCESSES[:2]]
    return [
        *(_row("forward and backward", shape, one_layer, size) for shape in LAYERS for size in PROCESSES),
        *(_row("training step", IMAGES, one_step, size) for size in PROCESSES),
    ]


def _row(
    operation: str, shape: tuple[int, ...], calls: Callable[[tuple[int, ...]], Mapping[str, Call]], size: int
) -> Row:
    def build(compiled: bool) -> Field:
        world = World(size, functools.partial(calls, shape), torch.get_num_threads())
        return Field({name: world.contestant(name) for name in (OURS, TORCH)})

    words = f"{operation}, {size} process{'es' * (size > 1)}"
    return Row(words, shape, torch.float32, "contiguous", build, lasts=0.05)


def one_layer(shape: tuple[int, ...]) -> Mapping[str, Call]:
    """Return a forward and a backward of a BatchNorm, by either source."""
    x, direction = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def call(source: Statistics) -> Call:
        norm = BatchNorm2d(shape[1], statistics=source)
        inputs = x, norm.weight, norm.bias
        return lambda: torch.autograd.grad(norm(x), inputs, direction)

    return _by_source(call)


def one_step(shape: tuple[int, ...]) -> Mapping[str, Call]:
    """Return a training step of a network, with norms of either source."""
    images, labels = torch.randn(shape), torch.randint(10, shape[:1])

    def call(source: Statistics) -> Call:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for channels in (shape[1], *[WIDTH] * (DEPTH - 1)):
            convolution = nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False)
            layers += [convolution, BatchNorm2d(WIDTH, activation="relu", statistics=source)]
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()

        return step

    return _by_source(call)


def _by_source(call: Callable[[Statistics], Call]) -> Mapping[str, Call]:
    return {OURS: call(Synced()), TORCH: call(Batch())}
