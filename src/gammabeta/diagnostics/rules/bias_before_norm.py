"""A bias whose gradient is zero because a norm follows it.

What it does: Finds convolutions and linear layers with a bias whose output only a BatchNorm or InstanceNorm reads. It
goes by the flow of data, not by the order in which layers are registered.

Why it matters: The norm subtracts the mean, and the bias with it. The bias's gradient is zero except for rounding, and
β does its work. Yet it costs memory, optimizer state and a pass over the gradient.

Example: A convolution with its default bias before a BatchNorm.

Use instead: `bias=False` where the layer is constructed. `diagnosis.fix(notes=True, keep_checkpoints=False)` removes
the bias and subtracts it from the running mean, so that the output stays the same. It is not done otherwise:
checkpoints and averages from before have the bias.

Evidence: tests/diagnostics/rules/test_flow_rules.py: the bias's gradient is less than a millionth of the weight's.

Limits: It is a note, since it costs only resources. Under frozen statistics the bias counts, and is not found. An
optimizer that holds the bias keeps it.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.flow import calls_of, layer_before
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.surgery.change import Change, transaction

severity = "note"
sees = "D"


def check(record: Record) -> Iterator[Match]:
    for norm, call, _ in calls_of(record, "batch", "instance"):
        before = None if norm.frozen else layer_before(record, call)
        if before is None or before[1].bias is None or "bias" not in before[1]._parameters:
            continue
        layer, module = before
        message = f"the norm behind it subtracts its bias again with the mean: {_count(module.bias.numel())} no effect"
        fix = Fix("bias=False in a new model", partial(_remove, norm, layer, module), keeps_checkpoints=False)
        yield Match(layer, message, {"norm": norm.name, "bias": module.bias.numel()}, fix)


def _count(parameters: int) -> str:
    return "1 parameter has" if parameters == 1 else f"{parameters} parameters have"


def _remove(norm: Norm, layer: str, module: Any) -> Change:
    with transaction("remove bias") as change:
        if norm.running_mean is not None and norm.module is not None:
            mean = norm.running_mean - module.bias.detach().to(norm.running_mean.dtype)
            change.overwrite(norm.module, "running_mean", mean)
        change.set_parameter(module, "bias", None)
        change.note(layer, "has no bias; it is subtracted from the running mean")
    return change


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model, where=("0",), inputs=torch.randn(4, 3, 8, 8))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model, inputs=torch.randn(4, 3, 8, 8))
