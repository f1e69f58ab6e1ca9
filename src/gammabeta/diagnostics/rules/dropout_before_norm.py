"""Dropout that feeds a BatchNorm: the variance differs between training and evaluation.

What it does: Finds BatchNorms whose input has a different variance with dropout on than with dropout off, measured on
the given inputs, in the median over the channels. A factor above 1.5 (or below 1/1.5) is a warning. Smaller ones, from
1.1 on and beyond what dropout's own randomness explains, are one note.

Why it matters: Dropout keeps the mean and raises the variance. The running variance is that of training, but inputs in
evaluation vary less. Every norm behind the dropout then standardizes by the wrong scale: the "variance shift".

Example: Dropout before a BatchNorm.

Use instead: Dropout after the last BatchNorm.

Evidence: tests/diagnostics/rules/test_dropout_before_norm.py: with p = 0.5 the flagged example's converged running
variance is twice the variance in evaluation; the clean one's is the same. In a network of six layers with p = 0.5, a
factor above 1.5, statistics collected without dropout lower the loss in evaluation.

Limits: It is measured at the given parameters and inputs, which have to be worth eight values per channel. Networks
with a little dropout inside (DenseNet, WideResNet, Conformer) are a note: published results were reached with it. Other
randomness (DropPath, random augmentation inside the model) is not switched on. Source: Li et al. 2018 (1801.05134).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.measurement import Given
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match

severity = "warning"
sees = "D"

BOUND, HARMS = 1.1, 1.5
# Values per channel from which on a variance is measured.
FEWEST = 8.0


def check(record: Record) -> Iterator[Match]:
    few: dict[str, float] = {}
    fix = Fix("move the dropout after the last BatchNorm")
    for norm in record.of_kind("batch"):
        calls = (record.given_with_dropout or {}).get(norm.name, ())
        if norm.frozen or len(calls) != 1:
            continue
        ratio = _ratio(calls[0], norm.eps or 0.0)
        if ratio is None:
            continue
        if max(ratio, 1 / ratio) > HARMS:
            message = f"dropout before it makes the variance of its input {ratio:.2f} times that of evaluation"
            yield Match(norm.name, message, {"ratio": ratio}, fix)
        else:
            few[norm.name] = ratio
    if few:
        worst = max(few, key=lambda name: max(few[name], 1 / few[name]))
        others = f"; of {len(few) - 1} more by less" if len(few) > 1 else ""
        message = f"dropout before it makes the variance of its input {few[worst]:.2f} times that of evaluation{others}"
        yield Match(worst, message, {"ratio": few[worst], "layers": [*few]}, fix, severity="note")


def _ratio(given: Given, eps: float) -> float | None:
    """Return the factor that dropout brings, in the median; None if it is small or may be chance."""
    if given.without is None or given.effective is None or given.effective < FEWEST:
        return None
    varies = given.without.var() > eps  # below it ε decides the output
    if not bool(varies.any()):
        return None
    ratios: Any = (given.moments.var() / given.without.var())[varies].nan_to_num(1.0, 1.0)
    ratio = float(ratios.median())
    # The median over C channels of variances from n values, whose relative standard error is √(2/n).
    chance = 2 * 1.25 * (2 / given.effective / ratios.numel()) ** 0.5
    return ratio if ratio > 0 and max(ratio, 1 / ratio) > BOUND + chance else None


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    return Example(model, where=("2",), inputs=torch.randn(256, 16))


def clean() -> Example:
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))
    return Example(model, inputs=torch.randn(256, 16))
