"""Processes that call a synchronized layer a different number of times.

What it does: Compares how often each process had called each synchronized layer when it began the last measured step
that all have written.

Why it matters: A synchronized layer waits for every process of its group. If one process calls it once more, it waits
for ever, or takes the numbers of another layer for its own.

Example: One process calls the layer once more in each step; in the example each is in a group of its own, so that no
process waits.

Use instead: Call the layer in every process, on an empty batch if there is nothing, or give the branch a norm that is
not synchronized.

Evidence: tests/distributed/test_watch.py: one of two gloo processes calls the layer more often, and both report the
layer and the calls.

Limits: It reports what has happened and does not stop a process that already waits. `GAMMABETA_DEBUG=1` does, with an
error that names layer and ranks. It compares all processes, so it also reports layers of smaller groups that are called
unequally on purpose. Forwards with gradients off are not counted.
"""

from collections.abc import Iterator

import torch
from torch import distributed, nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record, counted
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.statistics import Synced
from gammabeta.surgery.adopt import adopt
from gammabeta.surgery.set_statistics import set_statistics

severity = "error"
sees = "W"


def check(record: Record) -> Iterator[Match]:
    ranks = record.watched.ranks
    for norm in record.of_kind("batch"):
        calls = {rank: other.calls[norm.name] for rank, other in ranks.items() if norm.name in other.calls}
        if len(set(calls.values())) < 2:
            continue
        counts = ", ".join(f"rank {rank} {counted(count, 'time')}" for rank, count in sorted(calls.items()))
        yield Match(
            norm.name,
            f"it shares its statistics, but the ranks called it a different number of times up to step "
            f"{record.watched.rank_step}: {counts}",
            {"calls": calls},
            Fix("call it on every rank, on an empty batch if there is nothing; GAMMABETA_DEBUG=1 stops at the call"),
        )


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    adopt(model)
    set_statistics(model, Synced(distributed.new_group([distributed.get_rank()], use_local_synchronization=True)))

    def train() -> None:
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(32, 4)).square().mean().backward()
            if distributed.get_rank() == 0:
                model[1](torch.randn(32, 8)).sum()
            optimizer.step()

    return Example(model, where=("1",), optimizer=optimizer, train=train, processes=2)


def clean() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    adopt(model)
    set_statistics(model, Synced())

    def train() -> None:
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(32, 4)).square().mean().backward()
            optimizer.step()

    return Example(model, optimizer=optimizer, train=train, processes=2)
