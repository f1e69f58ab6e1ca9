"""A training that goes on in evaluation mode.

What it does: Counts optimizer steps whose forwards with gradients all ran in evaluation mode. It is a warning if steps
in training mode came before, and the whole model is in evaluation mode. It is a note if all steps were in evaluation
mode, or if only some norms changed to it while the model stayed in training mode.

Why it matters: `train()` was forgotten after a validation. From then on BatchNorms normalize by running statistics that
no longer move, while the weights before them do, and dropout is off. Nothing raises, and the loss goes down
(joeynmt#184, vsepp#4).

Example: `model.eval()` in a validation after five steps, and fifteen more steps.

Use instead: `model.train()` at the beginning of each epoch and after each validation. Norms that should stay frozen:
`gammabeta.freeze`, which says so in the model.

Evidence: tests/diagnostics/rules/test_trained_in_evaluation.py: at the end of the flagged example the input of the norm
is one standard deviation from its running statistics; in the clean one a quarter, which is the average's lag.

Limits: It needs the optimizer: without one, a step is a forward in training mode. Fine-tuning in evaluation mode may be
meant, as the note says. Models without BatchNorm and without dropout compute the same in both modes and are not found.
Compiled forwards are not seen.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match

severity = "warning"
sees = "W"

LEAST = 2  # steps

_FIX = Fix("model.train() after each validation; for norms that should stay frozen, gammabeta.freeze(model)")


def check(record: Record) -> Iterator[Match]:
    watched, model = record.watched, record.model
    if model is None:
        return
    norms = [norm for norm in record.of_kind("batch") if norm.tracks]
    dropouts = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    if watched.evaluation_steps >= LEAST and (norms or dropouts):
        total = watched.evaluation_steps + watched.training_steps
        first = watched.first_evaluation
        changed = watched.training_steps > 0 and watched.evaluation_after_training >= LEAST
        if watched.training_steps > 0 and not changed:
            return
        what = " and ".join(_affected(norms, len(dropouts)))
        if changed:
            message = (
                f"{watched.evaluation_after_training} of {total} steps ran in evaluation mode after training mode, the "
                f"first being step {first}: {what}"
            )
        else:
            message = f"all {total} steps ran in evaluation mode: {what}. If this is meant, ignore it"
        evidence = {"steps": watched.evaluation_steps, "of": total, "first": first}
        where = norms[0].name if norms else ""
        yield Match(where, message, evidence, _FIX, severity=None if changed else "note")
        return
    parts = [norm for norm in norms if _changed(record, norm)]
    if parts:
        steps = watched.norms[parts[0].name].evaluation_steps
        others = f", as did {len(parts) - 1} more," if len(parts) > 1 else ""
        message = (
            f"it trained in training mode, then{others} went through {steps} steps in evaluation mode while the model "
            "was in training mode: frozen on purpose, or left so by a validation"
        )
        yield Match(parts[0].name, message, {"steps": steps, "norms": len(parts)}, _FIX, severity="note")


def _affected(norms: list[Norm], dropouts: int) -> Iterator[str]:
    if norms:
        yield f"{len(norms)} BatchNorm{'s' * (len(norms) > 1)} normalized by running statistics that did not move"
    if dropouts:
        yield f"{dropouts} Dropout{'s' * (dropouts > 1)} {'were' if dropouts > 1 else 'was'} off"


def _changed(record: Record, norm: Norm) -> bool:
    watched = record.watched.norms.get(norm.name)
    return watched is not None and watched.calls > 0 and watched.evaluation_steps >= LEAST


def flagged() -> Example:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    def train() -> None:
        model.train()
        for step in range(20):
            if step == 5:
                model.eval()  # a validation
            x = torch.randn(32, 4) + 1
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), x[:, :2]).backward()
            optimizer.step()

    return Example(model, where=("1",), optimizer=optimizer, train=train)


def clean() -> Example:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    def train() -> None:
        for step in range(20):
            model.train()
            if step == 5:
                model.eval()  # a validation
                model(torch.randn(32, 4) + 1)
                model.train()
            x = torch.randn(32, 4) + 1
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), x[:, :2]).backward()
            optimizer.step()

    return Example(model, optimizer=optimizer, train=train)
