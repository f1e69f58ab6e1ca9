"""A BatchNorm that would lose something in torch's conversion to SyncBatchNorm, or has lost it.

What it does: Finds subclasses of torch's BatchNorm with a forward of their own, and gammabeta's BatchNorms that have an
activation or their own source of statistics. It gives one note for all layers of a kind: nothing is wrong until
somebody converts. A warning says that it has happened: a SyncBatchNorm holds modules, which its forward never calls.

Why it matters: torch's `convert_sync_batchnorm(model)` replaces every BatchNorm by a plain SyncBatchNorm with the same
weights. An activation inside, as in timm's BatchNormAct2d, is gone without an error (timm#1254). gammabeta's layers
raise an error there. A converted model trains on without its activations, and the weights are then of no use to the
model as it is defined (pytorch#187298).

Example: A BatchNorm with the ReLU inside.

Use instead: `gammabeta.set_statistics(model, gammabeta.statistics.Synced())`, which keeps class, activation and
weights; for timm's models `timm.layers.convert_sync_batchnorm`.

Evidence: tests/diagnostics/rules/test_conversion_drops_forward.py: after torch's conversion, half of the outputs of a
BatchNorm with a ReLU in its forward are negative, where the ReLU let none pass, and the ReLU is found in the layer that
the conversion has made. gammabeta's layer refuses the conversion.

Limits: It cannot know whether a conversion is planned. Subclasses that share torch's forward are not found, nor are
frozen layers, which a conversion thaws. After a conversion only what was a module can be found; of a function called in
the forward nothing is left. A SyncBatchNorm with hooks is left alone: they may call what it holds.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.layers.batch_norm import BatchNorm2d, _BatchNorm
from gammabeta.statistics import Batch, Running, Synced
from gammabeta.surgery.set_statistics import set_statistics

severity = "note"
sees = "S"


def check(record: Record) -> Iterator[Match]:
    found: dict[str, list[Norm]] = {}
    for norm in record.of_kind("batch"):
        lost = _lost(norm)
        if lost:
            found.setdefault(lost, []).append(norm)
    for lost, norms in found.items():
        others = f" (in {len(norms)} layers)" if len(norms) > 1 else ""
        message = f"torch's convert_sync_batchnorm would drop {lost}{others}"
        evidence = {"layers": [norm.name for norm in norms]}
        yield Match(norms[0].name, message, evidence, _fix(record, norms))
    yield from _converted(record)


def _converted(record: Record) -> Iterator[Match]:
    """Yield one match for all layers whose conversion has left the same modules idle."""
    found: dict[str, list[str]] = {}
    for norm in record.of_kind("batch"):
        idle = _idle(norm.module)
        if idle:
            found.setdefault(idle, []).append(norm.name)
    for idle, names in found.items():
        others = f" (in {len(names)} layers)" if len(names) > 1 else ""
        message = f"nothing calls the {idle} that it holds{others}: a conversion has dropped the forward that did"
        yield Match(names[0], message, {"layers": names}, Fix(_AGAIN), severity="warning")


_AGAIN = (
    "build the model again, and synchronize it by the conversion of its own library: for timm's models "
    "timm.layers.convert_sync_batchnorm(model)"
)


def _idle(module: Any) -> str:
    """Name the modules in a SyncBatchNorm, torch's or an adopted one, whose forward calls none."""
    synced = type(module) is nn.SyncBatchNorm or (
        isinstance(module, _BatchNorm) and isinstance(module.statistics, Synced)
    )
    if not synced or module._forward_hooks or module._forward_pre_hooks:
        return ""
    held = (
        f"{name} ({type(child).__name__})"
        for name, child in module.named_children()
        if name != "parametrizations" and not isinstance(child, nn.Identity)
    )
    return " and ".join(held)


def _lost(norm: Norm) -> str:
    module: Any = norm.module
    if isinstance(module, _BatchNorm):
        if isinstance(module.statistics, Synced):
            return ""
        parts = [f"the activation {module.activation}"] if module.activation is not None else []
        parts += [f"the statistics {module.statistics}"] if module.statistics not in (Batch(), Running()) else []
        return " and ".join(parts)
    plain = (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module).forward not in plain:
        return f"the forward of {norm.class_name}"
    return ""


def _fix(record: Record, norms: list[Norm]) -> Fix:
    if not all(isinstance(norm.module, _BatchNorm) for norm in norms):
        return Fix("to synchronize it, use the conversion of its own library")
    call = "to synchronize it, call gammabeta.set_statistics(model, gammabeta.statistics.Synced())"
    if any(getattr(norm.module, "statistics", None) != Batch() for norm in norms):
        return Fix(call)  # it would lose its source of statistics: for a person to decide
    assert record.model is not None
    where: list[str | nn.Module] = [norm.name for norm in norms]
    return Fix(call, partial(set_statistics, record.model, Synced(), where=where))


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), BatchNorm2d(8, activation="relu"))
    return Example(model, where=("1",))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model)
