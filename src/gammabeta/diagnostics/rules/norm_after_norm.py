"""A norm that feeds a norm with nothing between.

What it does: Finds norms whose input is what another norm gave, through views alone.

Why it matters: The second undoes the first's γ and β, or most of it, and both are paid for. It comes from blocks that
end with a norm and blocks that begin with one.

Example: A BatchNorm behind a BatchNorm.

Use instead: One of the two.

Evidence: tests/diagnostics/rules/test_flow_rules.py: in training, other γ > 0 and β in the first BatchNorm leave the
output the same.

Limits: Norms over different axes (LayerNorm, then BatchNorm) do not undo each other, and are not found.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.findings import Finding, Fix
from gammabeta.diagnostics.flow import calls_of
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example
from gammabeta.introspection.observe import Observation

code = "GB307"
name = "norm-after-norm"
severity = "warning"
sees = "D"

KINDS = ("batch", "instance", "group", "layer", "rms")


def check(record: Record) -> Iterator[Finding]:
    observation: Observation = record.observed
    kinds = {known: norm.kind for norm in record.norms for known in norm.names}
    told: set[str] = set()
    for norm, _, x in calls_of(record, *KINDS):
        for seen, _axis in observation.trace_back(x, min(1, len(x.shape) - 1)):
            first = next((giver.module for giver in observation.producers(seen.data) if giver.module in kinds), None)
            if first is None or kinds[first] != norm.kind or norm.name in told:
                continue
            told.add(norm.name)
            message = f"its input is what {first}, of the same kind, gave: it undoes that one's scale and shift"
            yield Finding(code, name, severity, norm.name, message, {"first": first}, Fix("remove one of the two"))
            break


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model, where=("2",), inputs=torch.randn(4, 3, 8, 8))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model, inputs=torch.randn(4, 3, 8, 8))
