"""A training step of timm's networks, watched and not watched.

Ours is the network inside `gammabeta.watch` at its default interval, torch's the same network without it. A timing is
20 steps, so that it includes one step that is measured.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from gammabeta.benchmarks.contest import OURS, TORCH, Call, Contestant, Field, Row
from gammabeta.benchmarks.networks import load_timm, missing
from gammabeta.monitoring.watch import watch

__all__ = ["NAMES", "UNIT", "missing", "rows"]
UNIT = "ms"
NAMES = {OURS: "watched", TORCH: "not watched"}
AT_MOST = 1.05
STEPS = 20
CASES = (("mobilenetv2_100", (8, 3, 96, 96)), ("resnet18", (8, 3, 96, 96)), ("resnet50", (8, 3, 96, 96)))


def rows(quick: bool) -> list[Row]:
    """Return each network; quick: only the first."""
    return [_row(name, shape) for name, shape in (CASES[:1] if quick else CASES)]


def _row(name: str, shape: tuple[int, ...]) -> Row:
    def build(compiled: bool) -> Field:
        torch.manual_seed(0)
        plain = load_timm().create_model(name).train()
        watched = copy.deepcopy(plain)
        return Field({OURS: _steps(watched, shape, True), TORCH: _steps(plain, shape, False)})

    return Row(f"{name}, {STEPS} training steps", shape, torch.float32, "contiguous", build, at_most_of_torch=AT_MOST)


def _steps(model: nn.Module, shape: tuple[int, ...], watching: bool) -> Contestant:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(shape, generator=generator), torch.randint(1000, shape[:1], generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if watching:
        watcher = watch(model, optimizer).__enter__()
        watcher.watched.steps = STEPS  # after the first steps, which are measured more often

    def contestant(number: int) -> Call:
        def steps() -> None:
            for _ in range(STEPS):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            if watching:
                assert watcher.watched.steps % STEPS == 0

        return steps

    return contestant
