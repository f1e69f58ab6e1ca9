"""Several processes, each with its own statistics of few values.

What it does: If torch.distributed has more than one process, finds BatchNorms in training mode whose statistics come
only from their own process's batch, worth fewer than 32 values per channel.

Why it matters: Gradients are averaged over the processes, statistics are not. The batch that BatchNorm sees is that of
one process, however large the sum is. Below 32 values the variance is off by a quarter.

Example: A DistributedDataParallel model with BatchNorm and 4 samples per process.

Use instead: `gammabeta.set_statistics(model, gammabeta.statistics.Synced())`, in every process.

Evidence: tests/distributed/test_local_statistics.py: two processes' batch means differ by the standard error of the
reported number of values, and are equal after the fix.

Limits: It does not ask whether one process's values are enough for the layer's width. `Synced` costs one collective per
layer; claim small_batch measures whether small batches hurt.
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
            f"its statistics come from its own process's batch only, worth {values:.1f} values; over {world} processes "
            f"they would be worth {world * values:.1f}"
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
