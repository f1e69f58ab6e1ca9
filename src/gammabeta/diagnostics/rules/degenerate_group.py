"""A norm whose groups have one value each.

What it does: Finds GroupNorms and InstanceNorms that, on the given inputs, standardize groups of one value, and
LayerNorms and RMSNorms over one value without any.

Why it matters: The mean of one value is the value, its deviation 0: the output is β, whatever comes in, and no gradient
passes. Nothing raises. `GroupNorm(C, C)` after global pooling and converters from BatchNorm on (N, C) make such layers
(opacus#567).

Example: One group a channel on 1×1 maps.

Use instead: Groups of several channels.

Evidence: tests/diagnostics/rules/test_flow_rules.py: the flagged example's output is β for every input, the clean one's
is not.

Limits: RMSNorm is not looked at: of one value it keeps the sign.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.flow import calls_of
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match

severity = "error"
sees = "SD"


def check(record: Record) -> Iterator[Match]:
    told: set[str] = set()
    for norm in record.of_kind("layer", "rms"):  # which need no input to tell
        if prod(getattr(norm.module, "normalized_shape", (2,))) == 1:
            told.add(norm.name)
            message = "each of its groups has 1 value: the output is β, whatever comes in"
            if norm.kind == "rms":
                message = "each of its groups has 1 value: of the input only the sign is left"
            yield Match(norm.name, message, {"values": 1}, Fix("more axes in normalized_shape"))
    if record.observed is None:
        return
    for norm, _, x in calls_of(record, "group", "instance", "layer"):
        module: Any = norm.module
        if norm.kind == "group" and hasattr(module, "num_groups"):
            values = x.shape[1] // module.num_groups * prod(x.shape[2:])
            cure = "fewer groups"
        elif norm.kind == "instance" and (norm.training or norm.running_mean is None):
            values, cure = prod(x.shape[2:]), "LayerNorm or GroupNorm there"
        elif norm.kind == "layer" and hasattr(module, "normalized_shape"):
            values, cure = prod(module.normalized_shape), "more axes in normalized_shape"
        else:
            continue
        if values == 1 and norm.name not in told:
            told.add(norm.name)
            message = f"each group of input {x.shape} has 1 value: the output is β, whatever comes in"
            yield Match(norm.name, message, {"values": values}, Fix(cure))


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.GroupNorm(8, 8))
    return Example(model, where=("2",), inputs=torch.randn(4, 3, 8, 8))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.GroupNorm(2, 8))
    return Example(model, inputs=torch.randn(4, 3, 8, 8))
