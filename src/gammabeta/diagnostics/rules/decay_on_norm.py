"""Weight decay on γ and β.

What it does: Finds γ and β in a group of the optimizer that has weight decay.

Why it matters: Decay is meant to keep a layer's function simple. Before a norm it does not even do that, since scaling
the weights there changes nothing. On γ it shrinks the output itself, on β it pulls activations to zero. A channel whose
γ gets little gradient decays to nothing.

Example: `torch.optim.AdamW(model.parameters(), weight_decay=0.05)`.

Use instead: `torch.optim.AdamW(gammabeta.parameter_groups(model, weight_decay=0.05))`. The fix moves γ and β to a group
without decay; their optimizer state stays.

Evidence: tests/diagnostics/rules/test_decay_on_norm.py: a γ without gradient falls from 1 to 0.37 in 1,000 steps of
AdamW at a learning rate of 0.02 and a decay of 0.05: e⁻¹, as derived. After the fix it stays 1.

Limits: This is a convention more than a fault: many recipes decay everything and work. Learning rate schedulers and
gradient clipping that hold the list of groups have to be built after the fix.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.parameter_groups import parameter_groups

severity = "warning"
sees = "O"


def check(record: Record) -> Iterator[Match]:
    for norm in record.norms:
        if norm.module is None:
            continue
        decays: dict[str, float] = {}
        for key, parameter in norm.module.named_parameters(recurse=False):
            for optimizer in record.optimizers:
                for group in optimizer.param_groups:
                    decay = float(group.get("weight_decay") or 0.0)
                    if decay and parameter.requires_grad and any(parameter is other for other in group["params"]):
                        decays[key] = decay
        if decays:
            listed = " and ".join(f"{decay:g} on {key}" for key, decay in decays.items())
            fix = Fix(
                "pass gammabeta.parameter_groups(model, weight_decay) to the optimizer",
                partial(_spare, record, norm, tuple(decays)),
            )
            yield Match(norm.name, f"weight decay of {listed}", decays, fix)


def _spare(record: Record, norm: Norm, keys: tuple[str, ...]) -> Change:
    assert norm.module is not None
    with transaction("spare from decay") as change:
        for key in keys:
            parameter = norm.module._parameters[key]
            for optimizer in record.optimizers:
                for group in optimizer.param_groups:
                    if group.get("weight_decay") and any(parameter is other for other in group["params"]):
                        rest = [other for other in group["params"] if other is not parameter]
                        without = _group_without_decay(change, optimizer, group)
                        change.set_item(without, "params", [*without["params"], parameter])
                        change.set_item(group, "params", rest)
                        break
        change.note(norm.name, f"{' and '.join(keys)} in a group without weight decay")
    return change


def _group_without_decay(change: Change, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """Return the group with the same settings and no decay; it is added if there is none."""

    def settings(of: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in of.items() if key not in ("params", "weight_decay")}

    for other in optimizer.param_groups:
        if not other.get("weight_decay") and repr(settings(other)) == repr(settings(group)):
            return other
    new: dict[str, Any] = {**group, "params": [], "weight_decay": 0.0}
    change.on_undo(lambda: _remove(optimizer.param_groups, new))
    optimizer.param_groups.append(new)
    return new


def _remove(groups: list[dict[str, Any]], group: dict[str, Any]) -> None:
    groups[:] = [other for other in groups if other is not group]


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    return Example(model, where=("1",), optimizer=optimizer)


def clean() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU())
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.05))
    return Example(model, optimizer=optimizer)
