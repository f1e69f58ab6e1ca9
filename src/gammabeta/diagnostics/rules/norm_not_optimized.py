"""γ or β that require a gradient but that no optimizer moves, or that two groups move.

What it does: Finds γ and β with `requires_grad` that are in no group of the optimizers although weights around them
are, and those that are in two groups.

Why it matters: Groups made by hand, by class or by name, lose parameters: norms added later, norms of another class,
everything called "norm". A lost parameter silently stays at 1 or 0; its gradients are computed and accumulate in
`.grad`. A parameter in two groups is stepped twice each time.

Example: An optimizer that only has the weights with two or more axes.

Use instead: `gammabeta.parameter_groups(model, weight_decay)`, which has every parameter once.

Evidence: tests/diagnostics/rules/test_norm_not_optimized.py: after 20 steps the example's γ is exactly 1, with a
gradient; after the fix it has moved.

Limits: If several optimizers share a model, pass all of them, in a list. A part of which at most half of the weights
are in an optimizer counts as frozen on purpose, as the backbone under a linear probe.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.optimized import OptimizedAround
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.surgery.change import Change, transaction

severity = "warning"
sees = "O"


def check(record: Record) -> Iterator[Match]:
    if record.model is None:
        return
    times: dict[int, int] = {}
    for optimizer in record.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                times[id(parameter)] = times.get(id(parameter), 0) + 1
    around = OptimizedAround(record)
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
        if missing and around.is_trained(norm):
            message = f"{' and '.join(missing)}: in no optimizer, although requires_grad is set"
            last = record.optimizers[-1]
            fix = Fix(
                "add it: optimizer.add_param_group({…}), without weight decay", partial(_add, last, norm, missing)
            )
            yield Match(norm.name, message, dict.fromkeys(missing, 0), fix)
        if twice:
            message = f"{' and '.join(twice)}: in {max(counts.values())} groups, each of which steps it"
            fix = Fix("leave it in one group")
            yield Match(norm.name, message, {key: counts[key] for key in twice}, fix)


def _add(optimizer: torch.optim.Optimizer, norm: Norm, keys: tuple[str, ...]) -> Change:
    assert norm.module is not None
    parameters = [parameter for key in keys if (parameter := norm.module._parameters[key]) is not None]
    with transaction("add to the optimizer") as change:
        groups = list(optimizer.param_groups)
        contents = [(group, group["params"]) for group in groups]

        def back() -> None:
            optimizer.param_groups[:] = groups
            for group, content in contents:
                group["params"] = content

        change.on_undo(back)
        plain = [group for group in groups if not group.get("weight_decay")]
        if plain:
            plain[-1]["params"] = [*plain[-1]["params"], *parameters]
        else:
            optimizer.add_param_group({"params": parameters, "weight_decay": 0.0})
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
