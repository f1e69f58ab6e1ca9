"""torch's SyncBatchNorm where it has no process to synchronize with, or cannot synchronize.

What it does: Finds torch's SyncBatchNorm in a model that a process group of one process trains, or of several on a CPU.
The first is a warning, the second an error. Where no process group is initialized it is a note for all layers: the
training may start in several processes later.

Why it matters: In one process it is an ordinary BatchNorm, only slower, and the statistics are not synchronized as
expected. On a CPU with a process group its forward in training raises "SyncBatchNorm expected input tensor to be on
GPU". Tools that look for BatchNorm2d by its class do not see it (pytorch#41081).

Example: A converted model on a CPU.

Use instead: `gammabeta.adopt(model)`: a BatchNorm with `Synced`, with the same weights and keys. It works on a CPU
(gloo), and in one process it is exactly `Batch`.

Evidence: tests/diagnostics/rules/test_sync_without_group.py: adopting changes outputs by rounding only. With a process
group on a CPU, torch's layer raises in training and the adopted one runs.

Limits: A model that is moved to a GPU after the check is found too. In evaluation mode SyncBatchNorm is an ordinary
BatchNorm, and there is no warning.
"""

from collections.abc import Iterator
from functools import partial

import torch.distributed as dist
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.introspection.norms import is_ours
from gammabeta.surgery.adopt import adopt

severity = "note"
sees = "S"


def check(record: Record) -> Iterator[Match]:
    ready = dist.is_available() and dist.is_initialized()
    size = dist.get_world_size() if ready else 1
    waiting = []
    for norm in record.norms:
        if not isinstance(norm.module, nn.SyncBatchNorm) or is_ours(norm.module):
            continue
        like = next((t for t in (norm.weight, norm.running_mean) if t is not None), None)
        device = "cpu" if like is None else like.device.type
        if not ready:
            waiting.append((norm, device))
            continue
        if not norm.training:
            continue
        if size > 1 and device == "cpu":
            level, message = "error", f"SyncBatchNorm on a CPU, in {size} processes: its forward in training raises"
        elif size == 1:
            level = "warning"
            message = f"SyncBatchNorm on {device}, and the process group has one process: it synchronizes with no other"
        else:
            continue
        fix = Fix(f"gammabeta.adopt(model, where={norm.name!r})", partial(adopt, record.model, where=[*norm.names]))  # type: ignore[arg-type]
        yield Match(norm.name, message, {"processes": size, "device": device}, fix, severity=level)
    if waiting:
        yield _note(record, waiting)


def _note(record: Record, waiting: list[tuple[Norm, str]]) -> Match:
    """Report layers that wait for a process group."""
    names = [name for norm, _ in waiting for name in norm.names]
    others = f" (and {len(waiting) - 1} more)" if len(waiting) > 1 else ""
    device = waiting[0][1]
    message = (
        f"SyncBatchNorm on {device}{others}, and no process group is initialized: it synchronizes with no other process"
    )
    fix = Fix("to train in one process or on a CPU: gammabeta.adopt(model)", partial(adopt, record.model, where=names))  # type: ignore[arg-type]
    return Match(waiting[0][0].name, message, {"processes": 1, "device": device}, fix)


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return Example(model, where=("1",))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model)
