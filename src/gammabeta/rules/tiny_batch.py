"""Batch statistics of so few effective values that they are mostly noise.

What it does: Finds BatchNorms whose batch statistics in training rest on fewer than 8 effective values: a relative
standard error of the variance above √(2/8) = 0.5. Positions of one image are correlated, so the effective number comes
from how the samples' own means differ, not from N·H·W. For `Synced` it counts every process's batch, for `Ghost` the
sub-batch.

Why it matters: The layer divides by the batch's noisy standard deviation, which each sample helps to make; evaluation
divides by the running one. Accuracy falls with batches of a few images (Wu & He 2018, figure 1).

Example: Two images a batch whose pixels are nearly alike.

Use instead: A larger batch, `Synced()` over processes, GroupNorm, or `Renorm()`.

Evidence: claim small_batch; tests/rules/test_watched_rules.py compares the effective number with the variance of batch
means over many batches.

Limits: The estimate from two samples is noisy: the median of the last measured steps counts. A single sample is cut
into pieces, which hides correlation longer than a piece.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnosis import Finding, Fix
from gammabeta.record import Record
from gammabeta.rule import Example
from gammabeta.statistics import Renorm

code = "GB202"
name = "tiny-batch"
severity = "warning"
sees = "W"
# Values: a relative standard error of the variance of a half.
FEWEST = 8


def check(record: Record) -> Iterator[Finding]:
    for norm in record.of_kind("batch"):
        watched = record.watched.norms.get(norm.name)
        effective = watched.history.median("effective") if watched is not None else None
        source = getattr(norm.module, "statistics", None)
        if watched is None or effective is None or norm.frozen or isinstance(source, Renorm) or effective >= FEWEST:
            continue
        error = (2 / max(effective, 1e-9)) ** 0.5
        yield Finding(
            code,
            name,
            severity,
            norm.name,
            f"its batch statistics rest on {effective:.1f} effective values ({watched.samples} samples): the variance "
            f"has a standard error of {error:.0%}",
            {"effective": effective, "samples": watched.samples},
            Fix("a larger batch, gammabeta.set_statistics(model, Synced()) over processes, GroupNorm, or Renorm()"),
        )


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(2, 3, 8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)

    def train() -> None:
        for _ in range(20):
            optimizer.zero_grad()
            images = torch.randn(2, 3, 1, 1) + 0.1 * torch.randn(2, 3, 8, 8)
            model(images).square().mean().backward()
            optimizer.step()

    return Example(model, where=("1",), optimizer=optimizer, train=train)


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(2, 3, 8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)

    def train() -> None:
        for _ in range(20):
            optimizer.zero_grad()
            images = torch.randn(32, 3, 1, 1) + 0.1 * torch.randn(32, 3, 8, 8)
            model(images).square().mean().backward()
            optimizer.step()

    return Example(model, optimizer=optimizer, train=train)
