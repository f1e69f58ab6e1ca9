"""One BatchNorm called in several places on inputs that are not alike.

What it does: Finds BatchNorms that a forward calls several times, on inputs whose statistics differ by many standard
errors and by enough to matter: half a standard deviation, or a factor of two in the variance.

Why it matters: In training each call is standardized by its own batch. In evaluation all of them are standardized by
one average of their statistics, which fits none of them. γ and β may be shared, statistics may not.

Example: A detection head whose norm serves maps of several scales.

Use instead: One layer per call site; the weights of the layers around it can stay shared.

Evidence: tests/diagnostics/rules/test_flow_rules.py: the flagged example's outputs in training and evaluation differ by
half their spread; with a layer for each call they differ by rounding and sampling.

Limits: It holds for the given inputs only. Recurrent use over time steps is not found once the statistics have settled
and are alike.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.fixes import at_each
from gammabeta.diagnostics.gap import gap_of
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match

severity = "warning"
sees = "D"

_ONE = "one layer per call site: copy.deepcopy(model.get_submodule({name})) for each further call"
_EACH = "one layer per call site: copy.deepcopy(norm) of each for its further calls"


def check(record: Record) -> Iterator[Match]:
    for norm in record.of_kind("batch"):
        calls = (record.given or {}).get(norm.name, ())
        if norm.frozen or len(calls) < 2:
            continue
        first = calls[0].moments
        gaps = [gap for call in calls[1:] if (gap := gap_of(call, first.mean, first.var(1))) is not None]
        if any(gap.matters for gap in gaps):
            worst = max(gaps, key=lambda gap: gap.mean_shift + gap.log_variance_ratio)
            message = f"a forward calls it {len(calls)} times, on inputs that differ: {worst}"
            evidence = {"calls": len(calls), "mean_shift": worst.mean_shift}
            yield Match(norm.name, message, evidence, at_each(_ONE, _EACH, norm.name))


class Twice(nn.Module):
    """Two maps of different scales through one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(x), self.norm(3 * x + 1)], 1)


def flagged() -> Example:
    return Example(Twice(), where=("norm",), inputs=torch.randn(64, 8))


def clean() -> Example:
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    return Example(model, inputs=torch.randn(64, 8))
