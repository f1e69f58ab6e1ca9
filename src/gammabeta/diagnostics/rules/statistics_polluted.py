"""Running statistics moved by forwards that the model does not learn from.

What it does: Finds BatchNorms whose running statistics were moved by forwards in training mode with gradients off. Up
to a twentieth of all updates they are one note: a moving average forgets them. So they are where they belong to every
step and their inputs have the means of those that the layer learns from, as when a generator makes images for its
discriminator.

Why it matters: `no_grad` does not affect buffers. A summary, a warm-up, a teacher's pass or an evaluation that forgot
`eval()` moves the running statistics as much as a training step does, towards its own inputs. Evaluation then
normalizes by a mixture.

Example: Between the steps, another batch goes through the model under `no_grad`, in training mode.

Use instead: `gammabeta.frozen_statistics(model)` around such forwards, or `model.eval()`.

Evidence: tests/diagnostics/rules/test_watched_rules.py: the flagged example's running mean ends three standard
deviations from the data that it learns from, the clean one's within sampling error.

Limits: Recalibrating by forwards under `no_grad` is intended: do it outside the watch. Forwards with gradients on whose
loss is never used look like all others. The first forward of a reentrant checkpoint has gradients off too; it is not
counted if its recomputation follows.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record, counted
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.diagnostics.rules.mixed_domains import APART, ERRORS
from gammabeta.surgery.contexts import frozen_statistics

severity = "warning"
sees = "W"

LITTLE = 0.05
ADVICE = "`with gammabeta.frozen_statistics(model):` around those forwards"


def check(record: Record) -> Iterator[Match]:
    few = []
    for norm in record.of_kind("batch"):
        watched = record.watched.norms.get(norm.name)
        if watched is None or not watched.calls or not watched.polluting:
            continue
        share = watched.polluting / (watched.polluting + watched.calls)
        if share <= LITTLE or _is_of_the_same_data(watched):
            few.append((norm.name, watched.polluting, watched.calls))
            continue
        yield Match(
            norm.name,
            f"{counted(watched.polluting, 'forward')} in training mode with gradients off moved its running "
            f"statistics, {share:.0%} of its updates; {counted(watched.calls, 'forward')} had gradients on",
            {"polluting": watched.polluting, "calls": watched.calls},
            Fix(f"{ADVICE}, then gammabeta.recalibrate(model, batches)"),
        )
    if few:
        name, polluting, calls = few[0]
        others = f" (and of {len(few) - 1} more)" if len(few) > 1 else ""
        message = (
            f"{counted(polluting, 'forward')} in training mode with gradients off, beside {calls} with gradients on, "
            f"moved its running statistics{others}"
        )
        evidence = {"polluting": polluting, "calls": calls, "layers": [name for name, *_ in few]}
        yield Match(name, message, evidence, Fix(ADVICE), severity="note")


def _is_of_the_same_data(watched: Any) -> bool:
    """Whether most steps had forwards with gradients off, on inputs with the means of those with gradients."""
    squared, apart = watched.history.known("aside"), watched.history.median("aside_apart")
    if apart is None or 2 * len(squared) < len(watched.history.known("effective")):
        return False
    median = watched.history.median("aside")
    return median is not None and (median < ERRORS or apart < APART)


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train() -> None:
        for _ in range(10):
            with torch.no_grad():
                model(torch.randn(32, 4) + 10)
            optimizer.zero_grad()
            model(torch.randn(32, 4)).square().mean().backward()
            optimizer.step()

    return Example(model, where=("1",), optimizer=optimizer, train=train)


def clean() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train() -> None:
        for _ in range(10):
            with frozen_statistics(model), torch.no_grad():
                model(torch.randn(32, 4) + 10)
            optimizer.zero_grad()
            model(torch.randn(32, 4)).square().mean().backward()
            optimizer.step()

    return Example(model, optimizer=optimizer, train=train)
