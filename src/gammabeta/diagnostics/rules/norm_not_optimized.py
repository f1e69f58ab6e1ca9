"""γ or β that require a gradient but that no optimizer moves, or that two groups move.

What it does: Finds γ and β with `requires_grad` that are in no group of the optimizers although weights around them
are, and so are the nearest weights before them that require a gradient (behind them, if there are none before). Also
finds those that are in two groups.

Why it matters: Groups made by hand, by class or by name, lose parameters: norms added later, norms of another class,
everything called "norm". A lost parameter silently stays at 1 or 0; its gradients are computed and accumulate in
`.grad`. A parameter in two groups is stepped twice each time.

Example: An optimizer that only has the weights with two or more axes.

Use instead: `gammabeta.parameter_groups(model, weight_decay)`, which has every parameter once. The fix adds γ and β to
the optimizer of those weights if it is as constructed: no scheduler holds it, and it has taken no step.

Evidence: tests/diagnostics/rules/test_norm_not_optimized.py: after 20 steps the example's γ is exactly 1, with a
gradient; after the fix it has moved.

Limits: If several optimizers share a model, pass all of them, in a list. A part of which at most half of the weights
are in an optimizer counts as frozen on purpose, and so does a norm behind weights that are in none: in a linear probe
only the head is in the optimizer. "Before" and "behind" go by registration.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.optimized import OptimizedAround
from gammabeta.diagnostics.optimizer_groups import Groups
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.surgery.change import Change, transaction

severity = "warning"
sees = "O"


def check(record: Record) -> Iterator[Match]:
    if record.model is None:
        return
    every = [Groups(optimizer) for optimizer in record.optimizers]
    reasons: dict[int, str | None] = {}
    times: dict[int, int] = {}
    for groups in every:
        for group in groups.optimizer.param_groups:
            for parameter in group["params"]:
                times[id(parameter)] = times.get(id(parameter), 0) + 1
    around = OptimizedAround(record)
    neighbours = _neighbours(record)
    for norm in record.norms:
        if norm.module is None:
            continue
        counts = {
            key: times.get(id(parameter), 0)
            for key, parameter in norm.module.named_parameters(recurse=False)
            if parameter.requires_grad
        }
        missing = tuple(key for key, count in counts.items() if count == 0)
        twice = tuple(key for key, count in counts.items() if count > 1)
        neighbour = neighbours.get(norm.name)
        groups_of = next((groups for groups in every if neighbour is not None and groups.holds(neighbour)), None)
        if missing and neighbour is not None and groups_of is not None and around.is_trained(norm):
            if id(groups_of) not in reasons:
                reasons[id(groups_of)] = groups_of.why_not_edited()
            message = f"{' and '.join(missing)}: in no optimizer, although requires_grad is set"
            fix = _fix(norm, missing, groups_of, neighbour, reasons[id(groups_of)])
            yield Match(norm.name, message, dict.fromkeys(missing, 0), fix)
        if twice:
            message = f"{' and '.join(twice)}: in {max(counts.values())} groups, each of which steps it"
            fix = Fix("leave it in one group")
            yield Match(norm.name, message, {key: counts[key] for key in twice}, fix)


def _neighbours(record: Record) -> dict[str, nn.Parameter]:
    """Return for each norm the nearest Parameter before it that requires a gradient, or behind it if there is none.

    Parameters of norms do not count.
    """
    assert record.model is not None
    of_norms = {norm.module: norm.name for norm in record.norms}
    last: nn.Parameter | None = None
    found: dict[str, nn.Parameter] = {}
    waiting: list[str] = []
    for module in record.model.modules():
        if module in of_norms:
            if last is None:
                waiting.append(of_norms[module])
            else:
                found[of_norms[module]] = last
            continue
        for parameter in module._parameters.values():
            if parameter is not None and parameter.requires_grad:
                found |= dict.fromkeys(waiting, parameter)
                waiting, last = [], parameter
    return found


def _fix(norm: Norm, keys: tuple[str, ...], groups: Groups, neighbour: nn.Parameter, reason: str | None) -> Fix:
    decay = max(float(group.get("weight_decay") or 0.0) for group in groups.optimizer.param_groups)
    call = f"build the optimizer with gammabeta.parameter_groups(model, weight_decay={decay:g})"
    if reason is not None:
        return Fix(f"{call}, and its scheduler after that; this one stays as it is: {reason}")
    return Fix(f"{call}, before its scheduler", partial(_add, norm, keys, groups, neighbour))


def _add(norm: Norm, keys: tuple[str, ...], groups: Groups, neighbour: nn.Parameter) -> Change:
    assert norm.module is not None
    parameters = [parameter for key in keys if (parameter := norm.module._parameters[key]) is not None]
    with transaction("add to the optimizer") as change:
        # Norms may share a Parameter, which another fix has added then.
        parameters = [parameter for parameter in parameters if not groups.holds(parameter)]
        groups.add(change, parameters, neighbour)
        change.note(norm.name, f"{' and '.join(keys)} in the optimizer")
    return change


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.ndim > 1], lr=0.1, weight_decay=1e-4)
    return Example(model, where=("1",), optimizer=optimizer)


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    decayed, spared = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(decayed, lr=0.1, weight_decay=1e-4)
    optimizer.add_param_group({"params": spared, "weight_decay": 0.0})
    return Example(model, optimizer=optimizer)
