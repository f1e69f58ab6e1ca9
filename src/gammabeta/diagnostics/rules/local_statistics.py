"""Under several processes, statistics that are each process's own, of few values.

What it does: Where torch.distributed has more than one process, finds BatchNorms in training mode that take statistics
of their own batch alone, if that is worth under 32 values a channel.

Why it matters: The gradients are averaged over the processes, the statistics are not: the batch that BatchNorm sees is
that of one process, however large the sum is. Under 32 values the variance is off by a quarter.

Example: A DistributedDataParallel model with BatchNorm and 4 samples a process.

Use instead: `gammabeta.set_statistics(model, gammabeta.statistics.Synced())`, in every process.

Evidence: tests/distributed/test_local_statistics.py: two processes' batch means differ by the standard error of the
values that the finding tells, and are equal after the fix.

Limits: What is one process's values enough for the layer's width is not asked. `Synced` costs a collective a layer;
claim small_batch tells whether small batches hurt.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.statistics import Batch, Synced
from gammabeta.surgery.set_statistics import set_statistics

severity = "warning"
sees = "D"

FEWEST = 32.0


def check(record: Record) -> Iterator[Match]:
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1 or record.model is None:
        return
    for norm in record.of_kind("batch"):
        calls = (record.given or {}).get(norm.name, ())
        local = isinstance(getattr(norm.module, "statistics", Batch()), Batch)
        if norm.frozen or not local or isinstance(norm.module, nn.SyncBatchNorm) or not calls:
            continue
        if calls[0].effective is None or not (norm.training or record.batch_size):
            continue
        values = calls[0].effective / calls[0].samples * (record.batch_size or calls[0].samples)
        if values >= FEWEST:
            continue
        message = (
            f"it takes statistics of its own process's batch, worth {values:.1f} values; over {world} processes they "
            f"would be worth {world * values:.1f}"
        )
        fix = Fix(
            f"gammabeta.set_statistics(model, gammabeta.statistics.Synced(), where={norm.name!r}) in every process",
            partial(set_statistics, record.model, Synced(), where=[*norm.names]),
        )
        yield Match(norm.name, message, {"values": values, "processes": world}, fix)


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
    return Example(model.train(), where=("1",), inputs=torch.randn(16, 8), processes=2)


def clean() -> Example:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
    set_statistics(model, Synced())
    return Example(model.train(), inputs=torch.randn(16, 8), processes=2)
