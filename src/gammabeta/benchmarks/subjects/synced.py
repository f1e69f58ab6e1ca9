"""What Synced costs over Batch, in 1, 2 and 4 processes of this machine over gloo.

Every process has a batch of the row's shape, and all do the same at once; the clock runs in one of them. With more
processes than cores they take turns, Batch's too, so read the difference of the two, which is what exchanging
statistics and waiting for each other costs, and read it as this machine's: no network lies between these processes.
One layer is a forward and a backward in training; a step is forward, loss, backward and SGD of a network of 8 times
convolution and norm, each process its own, with no averaging of gradients, which costs the same under both.

What is exchanged, counted for each process, layer and step (C channels; a test holds ours): Synced sends 2C + 2 values
in one all-gather forward and 2C in one all-reduce backward. torch's SyncBatchNorm, which refuses tensors of a CPU and
so takes no part, sends 2C + 1 and 2C by the same two collectives, by its source; our one value more keeps the count
exact above 2^24. It takes its moments apart into mean and 1/√(σ² + ε), and waits on the host for the counts.
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
    """One layer and one step for each number of processes; quick: the smallest layer in one and two."""
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
    """A forward and a backward of a BatchNorm by either source."""
    x, direction = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def call(source: Statistics) -> Call:
        norm = BatchNorm2d(shape[1], statistics=source)
        inputs = x, norm.weight, norm.bias
        return lambda: torch.autograd.grad(norm(x), inputs, direction)

    return _by_source(call)


def one_step(shape: tuple[int, ...]) -> Mapping[str, Call]:
    """A training step of a network whose norms have either source."""
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
