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
randomness (DropPath, random augmentation inside the model) is not switched on. There is no warning where running
statistics change the variance in evaluation by a factor of two on their own. Source: Li et al. 2018 (1801.05134).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.as_training import measure_as_training
from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.measurement import Given
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match

severity = "warning"
sees = "D"

BOUND, HARMS = 1.1, 1.5
# A variance in evaluation within this factor of training's without dropout is that of usual inputs.
_USUAL = 2.0
# Values per channel from which on a variance is measured.
FEWEST = 8.0


def check(record: Record) -> Iterator[Match]:
    few: dict[str, float] = {}
    loud: dict[str, tuple[Given, float]] = {}
    fix = Fix("move the dropout after the last BatchNorm")
    for norm in record.of_kind("batch"):
        calls = (record.given_with_dropout or {}).get(norm.name, ())
        if norm.frozen or len(calls) != 1:
            continue
        ratio = _ratio(calls[0], norm.eps or 0.0)
        if ratio is None:
            continue
        if max(ratio, 1 / ratio) > HARMS:
            loud[norm.name] = calls[0], ratio
        else:
            few[norm.name] = ratio
    for name, ratio in _on_usual_inputs(record, loud):
        message = f"dropout before it makes the variance of its input {ratio:.2f} times that of evaluation"
        yield Match(name, message, {"ratio": ratio}, fix)
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


def _on_usual_inputs(record: Record, loud: Mapping[str, tuple[Given, float]]) -> Iterator[tuple[str, float]]:
    """Yield norms and ratios, without norms whose variance in evaluation is another one without dropout too.

    Running statistics that do not match the data, as those of a young training, make it so; against a variance that has
    all but vanished, any dropout is large.
    """
    if not loud or record.model is None:
        return
    moving: dict[str, Any] = {norm.name: norm.module for norm in record.of_kind("batch") if not norm.frozen}
    as_training = measure_as_training(record.model, record.inputs, moving, record.forward)
    for name, (given, ratio) in loud.items():
        calls = as_training.get(name, ())
        assert given.without is not None
        if len(calls) == 1:
            against: Any = calls[0].moments.var() / given.without.var()
            usual = float(against.nan_to_num(1.0, torch.inf).median())
            if not 1 / _USUAL < usual < _USUAL:
                continue
        yield name, ratio


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    return Example(model, where=("2",), inputs=torch.randn(256, 16))


def clean() -> Example:
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))
    return Example(model, inputs=torch.randn(256, 16))
