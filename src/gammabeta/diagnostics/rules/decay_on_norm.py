"""Weight decay on γ and β.

What it does: Finds γ and β in a group of the optimizer that has weight decay. The weight of a norm that scales by
1 + weight, as Gemma's, is left out: a norm of another library is run to see.

Why it matters: Decay is meant to keep a layer's function simple. Before a norm it does not even do that, since scaling
the weights there changes nothing. On γ it shrinks the output itself, on β it pulls activations to zero. A channel whose
γ gets little gradient decays to nothing.

Example: `torch.optim.AdamW(model.parameters(), weight_decay=0.05)`.

Use instead: `torch.optim.AdamW(gammabeta.parameter_groups(model, weight_decay=0.05))`, before a scheduler is built.
The fix moves γ and β to a group without decay if the optimizer is as constructed: no scheduler holds it, and it has
taken no step.

Evidence: tests/diagnostics/rules/test_decay_on_norm.py: a γ without gradient falls from 1 to 0.37 in 1,000 steps of
AdamW at a learning rate of 0.02 and a decay of 0.05: e⁻¹, as derived. After the fix it stays 1. An
optimizer that a scheduler holds keeps its groups.

Limits: This is a convention more than a fault: many recipes decay everything and work. What counts as a scheduler is
what is called so or has a method `step`, and any object or closure that holds the optimizer and a list or dict of as
many numbers as there are groups, or the list of groups. One that keeps its numbers elsewhere, in a global variable for
example, has to be built after the fix.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.optimizer_groups import Groups
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.diagnostics.scale import offset_of
from gammabeta.introspection.norms import norm_of
from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.parameter_groups import parameter_groups

severity = "warning"
sees = "O"


def check(record: Record) -> Iterator[Match]:
    every = [Groups(optimizer) for optimizer in record.optimizers]
    reasons: dict[int, str | None] = {}
    for norm in record.norms:
        decays: dict[str, float] = {}
        of: dict[int, Groups] = {}
        for key, parameter in [] if norm.module is None else norm.module.named_parameters(recurse=False):
            for groups in every:
                for group in groups.optimizer.param_groups:
                    decay = float(group.get("weight_decay") or 0.0)
                    held = decay and parameter.requires_grad and any(parameter is p for p in group["params"])
                    if held and not _holds_less_one(norm, key):
                        decays[key] = decay
                        of[id(groups)] = groups
        if decays:
            for groups in of.values():
                if id(groups) not in reasons:
                    reasons[id(groups)] = groups.why_not_edited()
            reason = next((known for groups in of.values() if (known := reasons[id(groups)]) is not None), None)
            listed = " and ".join(f"{decay:g} on {key}" for key, decay in decays.items())
            fix = _fix(norm, tuple(decays), list(of.values()), max(decays.values()), reason)
            yield Match(norm.name, f"weight decay of {listed}", decays, fix)


def _holds_less_one(norm: Norm, key: str) -> bool:
    """Whether a norm scales by 1 + weight: decay then pulls the scale to 1. torch's and gammabeta's do not."""
    if norm.module is None or norm.weight is None or offset_of(norm.module) != 1.0:
        return False
    layer = norm_of(norm.module, probe=True)
    return layer is not None and key == layer.affine.weight


def _fix(norm: Norm, keys: tuple[str, ...], of: list[Groups], decay: float, reason: str | None) -> Fix:
    call = f"build the optimizer with gammabeta.parameter_groups(model, weight_decay={decay:g})"
    if reason is not None:
        return Fix(f"{call}, and its scheduler after that; this one stays as it is: {reason}")
    return Fix(f"{call}, before its scheduler", partial(_spare, norm, keys, of))


def _spare(norm: Norm, keys: tuple[str, ...], of: list[Groups]) -> Change:
    assert norm.module is not None
    with transaction("spare from decay") as change:
        for key in keys:
            parameter = norm.module._parameters[key]
            for groups in of:
                if parameter is not None:
                    groups.spare(change, parameter)
        change.note(norm.name, f"{' and '.join(keys)} in a group without weight decay")
    return change


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    return Example(model, where=("1",), optimizer=optimizer)


def clean() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU())
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.05))
    return Example(model, optimizer=optimizer)
