"""torch's SyncBatchNorm where it has no process to synchronize with, or cannot synchronize.

What it does: Finds torch's SyncBatchNorm in a model whose weights are on a CPU, or while no process group of more than
one process is initialized. On a CPU with several processes it is an error.

Why it matters: In one process it is an ordinary BatchNorm, only slower, and the statistics are not synchronized as
expected. On a CPU with a process group its forward in training raises "SyncBatchNorm expected input tensor to be on
GPU". Tools that look for BatchNorm2d by its class do not see it (pytorch#41081).

Example: A converted model on a CPU.

Use instead: `gammabeta.adopt(model)`: a BatchNorm with `Synced`, with the same weights and keys. It works on a CPU
(gloo), and in one process it is exactly `Batch`.

Evidence: tests/diagnostics/rules/test_sync_without_group.py: adopting changes outputs by rounding only. With a process
group on a CPU, torch's layer raises in training and the adopted one runs.

Limits: A model that is checked before `init_process_group`, or moved to a GPU later, is found too.
"""

from collections.abc import Iterator
from functools import partial

import torch.distributed as dist
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.introspection.norms import is_ours
from gammabeta.surgery.adopt import adopt

severity = "warning"
sees = "S"


def check(record: Record) -> Iterator[Match]:
    ready = dist.is_available() and dist.is_initialized()
    size = dist.get_world_size() if ready else 1
    for norm in record.norms:
        if not isinstance(norm.module, nn.SyncBatchNorm) or is_ours(norm.module):
            continue
        like = next((t for t in (norm.weight, norm.running_mean) if t is not None), None)
        device = "cpu" if like is None else like.device.type
        alone = "no process group is initialized" if not ready else "the process group has one process"
        if size > 1 and device == "cpu":
            level, message = "error", f"SyncBatchNorm on a CPU, in {size} processes: its forward in training raises"
        elif size == 1:
            level, message = severity, f"SyncBatchNorm on {device}, and {alone}: it synchronizes with no other process"
        else:
            continue
        fix = Fix(f"gammabeta.adopt(model, where={norm.name!r})", partial(adopt, record.model, where=[*norm.names]))  # type: ignore[arg-type]
        yield Match(norm.name, message, {"processes": size, "device": device}, fix, severity=level)


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return Example(model, where=("1",))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model)
