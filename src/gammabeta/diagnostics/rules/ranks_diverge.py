"""Running statistics that differ between the processes of a training.

What it does: Compares the running statistics with which each process begins a measured step, after
DistributedDataParallel's broadcast of buffers. It finds BatchNorms that are more than a hundredth of a standard
deviation apart.

Why it matters: Without the broadcast (`broadcast_buffers=False`) and without synchronizing, each process averages its
own batches. They evaluate differently, and the checkpoint has those of one process (timm#110).

Example: Two processes, each with its own data, statistics neither synchronized nor broadcast.

Use instead: `gammabeta.reconcile(model)` before evaluation and saving, or `Synced()`.

Evidence: tests/distributed/test_watch.py: two gloo processes are reported with their distance; after `reconcile` and
under `Synced` they are not reported.

Limits: It compares the last measured step that all processes have written. Different statistics may be intended where
every process has data of another distribution (federated training with local statistics).
"""

from collections.abc import Iterator

import torch
from torch import distributed, nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.statistics import Synced
from gammabeta.surgery.adopt import adopt
from gammabeta.surgery.set_statistics import set_statistics

severity = "warning"
sees = "W"
FARTHEST = 0.01


def check(record: Record) -> Iterator[Match]:
    ranks = record.watched.ranks
    for norm in record.of_kind("batch"):
        distances = {rank: other.distance[norm.name] for rank, other in ranks.items() if norm.name in other.distance}
        if not distances:
            continue
        rank = max(distances, key=distances.__getitem__)
        if not distances[rank] > FARTHEST:
            continue
        yield Match(
            norm.name,
            f"its running statistics on rank {rank} are {distances[rank]:.2g} standard deviations from those of rank "
            f"{record.watched.rank}, at step {record.watched.rank_step}",
            {"distance": distances[rank], "rank": rank, "step": record.watched.rank_step},
            Fix(
                "gammabeta.reconcile(model) on every rank, or "
                "gammabeta.set_statistics(model, gammabeta.statistics.Synced())"
            ),
        )


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train() -> None:
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(32, 4) + 3 * distributed.get_rank()).square().mean().backward()
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
            model(torch.randn(32, 4) + 3 * distributed.get_rank()).square().mean().backward()
            optimizer.step()

    return Example(model, optimizer=optimizer, train=train, processes=2)
