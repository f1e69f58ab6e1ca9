"""Running statistics that do not match the data: evaluation uses another network than training.

What it does: Compares what each BatchNorm is given in evaluation, on the inputs, with its running statistics. It names
the first layer, in the order of the data, where they differ by more than sampling error can explain and by enough to
matter: half a standard deviation, or a factor of two in the variance, root mean square over the channels. Layers behind
it follow from it and are counted, not listed.

Why it matters: The network that is evaluated is not the one that was trained. Causes are a momentum too small for the
number of steps, data that has shifted, other preprocessing in evaluation, or statistics of another model.

Example: A BatchNorm whose running statistics stayed at 0 and 1, while its input has mean 3.

Use instead: Population statistics: `recalibrate` on data as in training; or the preprocessing of training.

Evidence: tests/diagnostics/rules/test_flow_rules.py: the flagged example's outputs in training and evaluation differ by
more than their own spread, and after the fix by a tenth of it.

Limits: The inputs have to be like those of training. Sampling error comes from the effective number of values, which a
single sample does not give: then nothing is reported.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.fixes import recalibration
from gammabeta.diagnostics.gap import Gap, gap_of
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.introspection.observe import Observation

severity = "warning"
sees = "D"


def check(record: Record) -> Iterator[Match]:
    observation: Observation = record.observed
    order = {call.module: call.index for call in reversed(observation.calls)}
    found: list[tuple[int, str, Gap]] = []
    for norm in record.of_kind("batch"):
        calls = (record.given or {}).get(norm.name, ())
        if len(calls) == 1 and norm.has_statistics and not norm.has_initial_statistics and norm.name in order:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            gap = gap_of(calls[0], norm.running_mean, norm.running_var)
            if gap is not None and gap.matters:
                found.append((order[norm.name], norm.name, gap))
    if found:
        _, first, gap = min(found)
        behind = f", and in {len(found) - 1} layers behind it" if len(found) > 1 else ""
        message = f"its running statistics do not match the inputs: {gap}{behind}"
        evidence = {"mean_shift": gap.mean_shift, "log_variance_ratio": gap.log_variance_ratio, "layers": len(found)}
        yield Match(first, message, evidence, recalibration(record, record.norm(first)))


def flagged() -> Example:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model[1].running_mean.fill_(-1.5)  # type: ignore[operator]
    inputs = torch.randn(16, 3, 8, 8)
    return Example(model.eval(), where=("1",), inputs=inputs, loader=[inputs])


def clean() -> Example:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    for _ in range(8):
        model(torch.randn(16, 3, 8, 8))
    return Example(model.eval(), inputs=torch.randn(16, 3, 8, 8))
