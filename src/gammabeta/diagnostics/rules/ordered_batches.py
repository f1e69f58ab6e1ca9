"""Batches that differ from each other more than shuffled ones would.

What it does: Compares the variance between the means of successive input batches with what shuffling gives: the
variance between samples of a batch over N. It uses up to 128 features of the model's input over up to 64 batches. It
reports a ratio above four if the means also differ by more than a fifth of the data's standard deviation. The module
named is the BatchNorm that is called first.

Why it matters: BatchNorm takes a batch for a sample of the data. If batches are sorted by class or by source, a batch's
statistics are those of its class, and the network learns to rely on them. In evaluation, running statistics of all
classes take their place.

Example: Batches of one class each.

Use instead: `shuffle=True` in the DataLoader.

Evidence: tests/diagnostics/rules/test_watched_rules.py: the ratio is between 0.5 and 2 for shuffled batches and above 4
for sorted ones.

Limits: It needs 16 batches and an input of floating dtype and constant shape. Frames of one video, or views of one
sample that were put into one batch on purpose, are ordered too. Nothing is said where the forwards of one step are on
different data (mixed-domains), as a GAN's real and fake samples: shuffling would not change that.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.diagnostics.rules import mixed_domains

severity = "warning"
sees = "W"
RATIO, APART = 4.0, 0.2


def check(record: Record) -> Iterator[Match]:
    watched = record.watched
    if watched.first is None or any(mixed_domains.check(record)) or _differ_within_steps(watched):
        return
    ratio, apart = watched.inputs.median("order"), watched.inputs.median("apart")
    if ratio is None or apart is None or ratio < RATIO or apart < APART:
        return
    yield Match(
        watched.first,
        f"the inputs' means vary {ratio:.1f} times as much between batches as shuffled data would ({apart:.2g} "
        "standard deviations): each batch's statistics describe only a part of the data",
        {"ratio": ratio, "deviations": apart},
        Fix("shuffle=True in the DataLoader, then gammabeta.recalibrate(model, batches)"),
    )


def _differ_within_steps(watched: Any) -> bool:
    """Whether the forwards of one step are on different data already, which no shuffling of the loader changes."""
    norm = watched.norms.get(watched.first)
    squared = norm.history.median("domains") if norm is not None else None
    return squared is not None and squared >= RATIO


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train() -> None:
        for step in range(40):
            optimizer.zero_grad()
            batch = torch.randn(32, 4) + 2 * (step % 3)
            model(batch).square().mean().backward()
            optimizer.step()

    return Example(model, where=("1",), optimizer=optimizer, train=train)


def clean() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train() -> None:
        for _ in range(40):
            optimizer.zero_grad()
            batch = torch.randn(32, 4) + 2 * torch.randint(3, (32, 1))
            model(batch).square().mean().backward()
            optimizer.step()

    return Example(model, optimizer=optimizer, train=train)
