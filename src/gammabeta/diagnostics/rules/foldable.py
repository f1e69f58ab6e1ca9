"""BatchNorms of a model in evaluation that could be folded into a neighbour.

What it does: Counts the BatchNorms that `gammabeta.fold` would fold into the layer before or behind them, by the flow
of data on the inputs. Measures their share of a forward's time.

Why it matters: In evaluation a BatchNorm is a scale and a shift per channel, which a convolution or linear layer can
carry in its weight and bias. Each fold saves a pass over memory.

Example: A ResNet for inference, as it was trained.

Use instead: `gammabeta.fold(model, example_inputs).model`, which compares the result with the original.

Evidence: tests/diagnostics/rules/test_probed_rules.py: `fold` folds as many as are counted, and the outputs stay the
same except for rounding.

Limits: It is a note: nothing is wrong. The time is that of the modules called one by one, the least of three forwards,
on a CPU; a compiler may have fused them already. Only a model in evaluation is looked at.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record, counted
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.introspection.neighbours import Refusal
from gammabeta.introspection.observe import Observation
from gammabeta.surgery.folding.sites import ALONE, Sites

severity = "note"
sees = "D"


def check(record: Record) -> Iterator[Match]:
    if record.model is None or record.model.training:
        return
    observation: Observation = record.observed
    sites, found = Sites(record.model, observation), []
    for norm in record.of_kind("batch"):
        if norm.training or not norm.has_statistics:
            continue
        try:
            if sites.place(norm.name).way != ALONE:
                found.append(norm.name)
        except Refusal:
            pass
    if not found:
        return
    seconds = {} if record.probe is None else record.probe.seconds
    taken = sum(seconds.get(name, 0.0) for name in found)
    verb = "takes" if len(found) == 1 else "take"
    share = f", which {verb} {taken / seconds['']:.0%} of a forward ({1000 * taken:.2f} ms)" if seconds.get("") else ""
    what = "it" if len(found) == 1 else f"it and {counted(len(found) - 1, 'more BatchNorm')}"
    message = f"{what} could be folded into neighbouring layers{share}"
    evidence = {"norms": len(found), "seconds": taken}
    yield Match(found[0], message, evidence, Fix("gammabeta.fold(model, example_inputs).model"))


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    return Example(model.eval(), where=("1",), inputs=torch.randn(4, 3, 8, 8))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU())
    return Example(model.eval(), inputs=torch.randn(4, 3, 8, 8))
