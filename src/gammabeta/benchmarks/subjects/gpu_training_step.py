"""A training step of ResNet-50 on a GPU, in channels_last and bfloat16 autocast.

Contestants: torch, torch.compile, and ours adopted and fused. A step is forward, loss, backward and SGD on images on
the device. Ours: `gammabeta.adopt`, then `gammabeta.fuse`, which moves each relu into the norm whose only reader it is.
The sum with the residual stays where the network has it. Times are device times, by CUDA events.
"""

from __future__ import annotations

import copy
import importlib.util

import torch
import torch.nn.functional as F
from torch import nn

from gammabeta.benchmarks import gpu
from gammabeta.benchmarks.contest import COMPILED, OURS, TORCH, Call, Contestant, Field, Row, device_clock
from gammabeta.benchmarks.networks import load_timm
from gammabeta.benchmarks.ring import join
from gammabeta.surgery.adopt import adopt
from gammabeta.surgery.fuse import fuse

UNIT = "ms"

SHAPE = (256, 3, 224, 224)
SMALL = (64, 3, 224, 224)
BATCHES = 2  # of images and labels, which the steps cycle through


def missing() -> str | None:
    reason = gpu.missing()
    if reason is not None:
        return reason
    if importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision"):
        return None
    return "it needs timm and torchvision: pip install --no-deps timm torchvision"


def rows(quick: bool) -> list[Row]:
    return [_row(shape) for shape in ((SMALL,) if quick else (SMALL, SHAPE))]


def _row(shape: tuple[int, ...]) -> Row:
    def build(compiled: bool) -> Field:
        torch.manual_seed(0)
        theirs = load_timm().create_model("resnet50").train()
        ours = copy.deepcopy(theirs)
        adopt(ours)
        fuse(ours, torch.randn(2, *shape[1:]))
        contestants = {OURS: steps(ours.train(), shape), TORCH: steps(copy.deepcopy(theirs), shape)}
        refused: dict[str, str] = {}
        if compiled:
            torch._dynamo.reset()
            refused = join(contestants, COMPILED, steps(theirs, shape, compiled=True))
        return Field(contestants, refused=refused, clock=device_clock)

    return Row("resnet50, training step", shape, torch.bfloat16, "channels_last", build, at_most_of_torch=1.0)


def steps(model: nn.Module, shape: tuple[int, ...], compiled: bool = False) -> Contestant:
    """Return training steps of the network, on other images each time."""
    model.to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = [torch.randn(shape, device="cuda").contiguous(memory_format=torch.channels_last) for _ in range(BATCHES)]
    labels = [torch.randint(1000, shape[:1], device="cuda") for _ in range(BATCHES)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    forward = torch.compile(model) if compiled else model

    def contestant(number: int) -> Call:
        x, y = images[number % BATCHES], labels[number % BATCHES]

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(forward(x), y)
            loss.backward()
            optimizer.step()

        return step

    return contestant
