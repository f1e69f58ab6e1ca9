"""Forwards of one step whose statistics come from different data.

What it does: Finds BatchNorms that one step calls on batches with different means: more than 5 standard errors and a
quarter of a standard deviation apart, root mean square over channels. Examples are labelled and unlabelled, real and
fake, source and target.

Why it matters: In training each batch is normalized by its own statistics. The running ones become a mixture that fits
neither, and evaluation uses it for both.

Example: A source and a target domain, one forward each.

Use instead: One forward of both together, or `gammabeta.frozen_statistics(model)` around one of them.

Evidence: tests/diagnostics/rules/test_watched_rules.py: after the flagged example the running mean lies between the two
domains, more than a standard deviation from either.

Limits: Only measured steps are compared, up to 8 forwards in each. An imbalance that lasts (parts of a batch by class)
looks the same. Where domains have layers of their own (domain-specific BatchNorm) nothing is found.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match

severity = "warning"
sees = "W"
# Squared standard errors; standard deviations.
ERRORS, APART = 25.0, 0.25


def check(record: Record) -> Iterator[Match]:
    for norm in record.of_kind("batch"):
        watched = record.watched.norms.get(norm.name)
        if watched is None or not norm.tracks:
            continue
        squared, apart = watched.history.median("domains"), watched.history.median("apart")
        if squared is None or apart is None or squared < ERRORS or apart < APART:
            continue
        yield Match(
            norm.name,
            f"successive forwards of one step have means {squared**0.5:.0f} standard errors apart ({apart:.2g} "
            "standard deviations): its running statistics become a mixture of both",
            {"errors": squared**0.5, "deviations": apart},
            Fix("model(torch.cat([a, b])) for both, or `with gammabeta.frozen_statistics(model):` around one of them"),
        )


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train() -> None:
        for _ in range(10):
            source, target = torch.randn(64, 4), torch.randn(64, 4) + 5
            optimizer.zero_grad()
            (model(source).square().mean() + model(target).square().mean()).backward()
            optimizer.step()

    return Example(model, where=("1",), optimizer=optimizer, train=train)


def clean() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train() -> None:
        for _ in range(10):
            source, target = torch.randn(64, 4), torch.randn(64, 4) + 5
            optimizer.zero_grad()
            model(torch.cat((source, target))).square().mean().backward()
            optimizer.step()

    return Example(model, optimizer=optimizer, train=train)
