"""A norm whose groups have one value each.

What it does: Finds GroupNorms and InstanceNorms that standardize groups of one value on the given inputs. LayerNorms
and RMSNorms over one value are found without inputs.

Why it matters: The mean of one value is the value itself, and its deviation is 0. The output is β for every input, and
no gradient passes. Nothing raises. `GroupNorm(C, C)` after global pooling and converters from BatchNorm on (N, C)
produce such layers (opacus#567).

Example: One channel per group on 1×1 maps.

Use instead: Groups of several channels.

Evidence: tests/diagnostics/rules/test_flow_rules.py: the flagged example's output is β for every input, the clean one's
is not.

Limits: Given inputs, RMSNorm is not looked at: of one value it keeps the sign.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.flow import calls_of, own_forward
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match

severity = "error"
sees = "SD"

_MORE = "more axes in normalized_shape: nn.LayerNorm(x.shape[1:])"


def check(record: Record) -> Iterator[Match]:
    found: set[str] = set()
    for norm in record.of_kind("layer", "rms"):  # found without inputs
        if _size(getattr(norm.module, "normalized_shape", 2)) == 1:
            found.add(norm.name)
            message = f"each of its groups has 1 value: the output is {_left(norm)} for every input"
            if norm.kind == "rms":
                message = "each of its groups has 1 value: only the input's sign is left"
            yield Match(norm.name, message, {"values": 1}, Fix(_MORE))
    if record.observed is None:
        return
    for norm, _, x in calls_of(record, "group", "instance", "layer"):
        module: Any = norm.module
        if own_forward(module) and norm.kind != "layer":  # it may take other groups
            continue
        if norm.kind == "group" and hasattr(module, "num_groups"):
            values = x.shape[1] // module.num_groups * prod(x.shape[2:])
            fewer = max(n for n in range(1, x.shape[1] // 2 + 1) if x.shape[1] % n == 0) if x.shape[1] > 1 else 1
            cure = f"fewer groups: nn.GroupNorm({fewer}, {x.shape[1]})"
        elif norm.kind == "instance" and (norm.training or norm.running_mean is None):
            values, cure = prod(x.shape[2:]), f"nn.GroupNorm(1, {x.shape[1]}) there"
        elif norm.kind == "layer" and hasattr(module, "normalized_shape"):
            values, cure = _size(module.normalized_shape), _MORE
        else:
            continue
        if values == 1 and norm.name not in found:
            found.add(norm.name)
            message = f"each group of input {x.shape} has 1 value: the output is {_left(norm)} for every input"
            yield Match(norm.name, message, {"values": values}, Fix(cure))


def _left(norm: Norm) -> str:
    """Name what is left where the deviation is 0."""
    return "0" if norm.bias is None else "β"


def _size(shape: Any) -> int:
    """Return the product of a normalized shape, which other libraries' norms may hold as one number."""
    return prod(shape) if isinstance(shape, tuple | list) else int(shape)


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.GroupNorm(8, 8))
    return Example(model, where=("2",), inputs=torch.randn(4, 3, 8, 8))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.GroupNorm(2, 8))
    return Example(model, inputs=torch.randn(4, 3, 8, 8))
