"""A BatchNorm that torch's conversion to SyncBatchNorm would take something from.

What it does: Finds subclasses of torch's BatchNorm with a forward of their own, and gammabeta's BatchNorms that have an
activation or another source of statistics than the batch. It is a note: nothing is wrong until somebody converts.

Why it matters: torch's `convert_sync_batchnorm(model)` replaces every BatchNorm by a plain SyncBatchNorm of the same
weights. An activation inside, as timm's BatchNormAct2d has, is gone, and no error says so (timm#1254).

Example: A BatchNorm with the ReLU inside.

Use instead: `gammabeta.set_statistics(model, gammabeta.statistics.Synced())`, which keeps class, activation and
weights; for timm's models `timm.layers.convert_sync_batchnorm`.

Evidence: tests/rules/test_conversion_drops_forward.py: after torch's conversion half of the example's outputs are
negative, where a ReLU let none pass.

Limits: Whether a conversion is planned, nobody can see. Subclasses that share torch's forward are not found.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from gammabeta.diagnosis import Finding, Fix
from gammabeta.layers.batch_norm import BatchNorm2d, _BatchNorm
from gammabeta.record import Norm, Record
from gammabeta.rule import Example
from gammabeta.statistics import Batch, Synced
from gammabeta.surgery.statistics import set_statistics

code = "GB308"
name = "conversion-drops-forward"
severity = "note"
sees = "S"


def check(record: Record) -> Iterator[Finding]:
    for norm in record.of_kind("batch"):
        module: Any = norm.module
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if isinstance(module, _BatchNorm):
            lost = [f"its activation {module.activation}"] if module.activation is not None else []
            lost += [f"its statistics {module.statistics}"] if module.statistics not in (Batch(), Synced()) else []
        elif (
            type(module).forward is not nn.modules.batchnorm._BatchNorm.forward and type(module) is not nn.SyncBatchNorm
        ):
            lost = [f"the forward of {norm.class_name}"]
        else:
            continue
        if lost and not isinstance(getattr(module, "statistics", None), Synced):
            message = f"torch's convert_sync_batchnorm would drop {' and '.join(lost)}"
            yield Finding(code, name, severity, norm.name, message, {}, _fix(record, norm))


def _fix(record: Record, norm: Norm) -> Fix:
    if not isinstance(norm.module, _BatchNorm):
        return Fix("to synchronize it, the conversion of the library that it is from")
    call = f"gammabeta.set_statistics(model, gammabeta.statistics.Synced(), where={norm.name!r})"
    if norm.module.statistics != Batch():
        return Fix(f"to synchronize it, {call}")
    assert record.model is not None
    return Fix(f"to synchronize it, {call}", partial(set_statistics, record.model, Synced(), where=[*norm.names]))


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), BatchNorm2d(8, activation="relu"))
    return Example(model, where=("1",))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model)
