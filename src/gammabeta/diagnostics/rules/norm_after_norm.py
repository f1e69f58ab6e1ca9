"""A norm that directly feeds another norm.

What it does: Finds norms whose input is the output of another norm of the same kind, with at most views between them.

Why it matters: The second norm undoes the first's γ and β, or most of them, and both cost time and memory. This comes
from blocks that end with a norm followed by blocks that begin with one.

Example: A BatchNorm behind a BatchNorm.

Use instead: One of the two.

Evidence: tests/diagnostics/rules/test_flow_rules.py: in training, another γ > 0 and another β in the first BatchNorm
leave the output the same.

Limits: Norms over different axes (LayerNorm, then BatchNorm) do not undo each other, and are not found.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.flow import calls_of
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.introspection.observe import Observation

severity = "warning"
sees = "D"

KINDS = ("batch", "instance", "group", "layer", "rms")


def check(record: Record) -> Iterator[Match]:
    observation: Observation = record.observed
    kinds = {known: norm.kind for norm in record.norms for known in norm.names}
    found: set[str] = set()
    for norm, _, x in calls_of(record, *KINDS):
        for seen, _axis in observation.trace_back(x, min(1, len(x.shape) - 1)):
            first = next((giver.module for giver in observation.producers(seen.data) if giver.module in kinds), None)
            if first is None or kinds[first] != norm.kind or norm.name in found:
                continue
            found.add(norm.name)
            message = f"its input is the output of {first}, of the same kind: it undoes that norm's scale and shift"
            yield Match(norm.name, message, {"first": first}, Fix("remove one of the two"))
            break


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model, where=("2",), inputs=torch.randn(4, 3, 8, 8))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model, inputs=torch.randn(4, 3, 8, 8))
