"""A model in training mode in which nothing trains.

What it does: Finds models that have norms with running statistics in training mode while no parameter of the model
requires a gradient.

Why it matters: Gradients are off for inference, for export or for a teacher, and `eval()` was forgotten. BatchNorm
normalizes by the batch, an exported graph has the batch's statistics built in, dropout drops, and every forward moves
the running statistics.

Example: `model.requires_grad_(False)`, then inference.

Use instead: `model.eval()`.

Evidence: tests/diagnostics/rules/test_exported_in_training.py: in the example a sample's output changes by 0.1 of its
size with its three companions, and every forward moves the buffers; after the fix it does neither.

Limits: A model that is only recalibrated, or that adapts its statistics to new data by running in training mode, is
meant to be in this state. `torch.no_grad()` around a forward cannot be seen from outside.
"""

from collections.abc import Iterator
from functools import partial

from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record, counted
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.surgery.change import Change, transaction

severity = "warning"
sees = "S"


def check(record: Record) -> Iterator[Match]:
    model = record.model
    if model is None:
        return
    parameters = list(model.parameters())
    moving = [norm for norm in record.norms if norm.tracks and norm.training]
    if not moving or not parameters or any(parameter.requires_grad for parameter in parameters):
        return
    message = (
        f"none of its parameters requires a gradient, yet {counted(len(moving), 'norm')} in training mode would move "
        f"running statistics at each forward: {moving[0].name or 'the model itself'}"
        f"{f' and {len(moving) - 1} more' if len(moving) > 1 else ''}"
    )
    evidence = {"parameters": len(parameters), "moving": len(moving)}
    yield Match("", message, evidence, Fix("model.eval()", partial(_evaluate, model)))


def _evaluate(model: nn.Module) -> Change:
    with transaction("eval") as change:
        for where, module in model.named_modules():
            if module.training:
                change.set_attribute(module, "training", False, where)
        change.note("", "in evaluation mode")
    return change


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model.requires_grad_(False)
    return Example(model, where=("",))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model.requires_grad_(False)
    return Example(model.eval())
