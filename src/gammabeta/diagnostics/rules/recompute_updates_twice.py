"""Running statistics that activation checkpointing moves twice.

What it does: Finds torch's BatchNorms whose forward ran again inside a backward and moved the running statistics once
more.

Why it matters: Checkpointing computes a forward again in the backward, and torch's layer takes it for another batch
(pytorch#96136). Every batch counts twice, so the average reaches back half as far: at momentum m the effective one is 1
− (1 − m)².

Example: A block under `torch.utils.checkpoint`.

Use instead: `gammabeta.adopt(model)`: its layers recognize a recomputation and move once.

Evidence: tests/diagnostics/rules/test_watched_rules.py: ten steps of the flagged example count 20 batches, of the clean
one 10.

Limits: A forward that runs inside a backward on purpose, by a tensor hook or a custom Function, counts as a
recomputation.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record, counted
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.surgery.adopt import adopt

severity = "warning"
sees = "W"


def check(record: Record) -> Iterator[Match]:
    for norm in record.of_kind("batch"):
        watched = record.watched.norms.get(norm.name)
        if watched is None or not watched.moved_again or record.model is None:
            continue
        yield Match(
            norm.name,
            f"{counted(watched.moved_again, 'forward')} ran again inside a backward (checkpointing) and moved "
            f"its running statistics a second time",
            {"recomputed": watched.moved_again},
            Fix(f"gammabeta.adopt(model, where={norm.name!r})", partial(adopt, record.model, where=[*norm.names])),
        )


def flagged() -> Example:
    block = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    model = nn.Sequential(block, nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train() -> None:
        for _ in range(10):
            optimizer.zero_grad()
            y = checkpoint(block, torch.randn(32, 4), use_reentrant=False)
            model[1](y).square().mean().backward()
            optimizer.step()

    return Example(model, where=("0.1",), optimizer=optimizer, train=train)


def clean() -> Example:
    block = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    adopt(block)
    model = nn.Sequential(block, nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train() -> None:
        for _ in range(10):
            optimizer.zero_grad()
            y = checkpoint(block, torch.randn(32, 4), use_reentrant=False)
            model[1](y).square().mean().backward()
            optimizer.step()

    return Example(model, optimizer=optimizer, train=train)
