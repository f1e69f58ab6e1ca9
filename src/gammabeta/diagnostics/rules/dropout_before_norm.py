"""Dropout that feeds a BatchNorm: the variance differs between training and evaluation.

What it does: Finds BatchNorms whose input has a different variance with dropout on than with dropout off, measured on
the given inputs: by more than a tenth, in the median over the channels.

Why it matters: Dropout keeps the mean and raises the variance. The running variance is that of training, but inputs in
evaluation vary less. Every norm behind the dropout then standardizes by the wrong scale: the "variance shift".

Example: Dropout before a BatchNorm.

Use instead: Dropout after the last BatchNorm.

Evidence: tests/diagnostics/rules/test_flow_rules.py: with p = 0.5 the flagged example's converged running variance is
twice the variance in evaluation; the clean one's is the same.

Limits: It is measured at the given parameters and inputs. Other randomness (DropPath, random augmentation inside the
model) is not switched on. Source: Li et al. 2018 (1801.05134).
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match

severity = "warning"
sees = "D"

BOUND = 0.1


def check(record: Record) -> Iterator[Match]:
    for norm in record.of_kind("batch"):
        off, on = (calls.get(norm.name, ()) for calls in (record.given or {}, record.given_with_dropout or {}))
        if norm.frozen or len(off) != 1 or len(on) != 1:
            continue
        ratio = float((on[0].moments.var() / off[0].moments.var()).nan_to_num(1.0, 1.0).median())
        if abs(ratio - 1) > BOUND:
            message = f"dropout before it makes the variance of its input {ratio:.2f} times that of evaluation"
            fix = Fix("move the dropout after the last BatchNorm")
            yield Match(norm.name, message, {"ratio": ratio}, fix)


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    return Example(model, where=("2",), inputs=torch.randn(256, 16))


def clean() -> Example:
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))
    return Example(model, inputs=torch.randn(256, 16))
