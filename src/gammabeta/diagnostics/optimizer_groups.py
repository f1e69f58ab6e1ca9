"""Edits of an optimizer's groups, where nothing but the optimizer itself depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.optimizer_holders import holder_of
from gammabeta.surgery.change import Change


def stepping(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that updates the parameters: the one inside, where one wraps another and has its groups.

    Sharpness-aware minimization and Lookahead are usually written so: the one outside holds the one inside in an
    attribute, and the two share one list of groups.
    """
    seen = {id(optimizer)}
    while True:
        held = (value for value in vars(optimizer).values() if isinstance(value, torch.optim.Optimizer))
        inside = next((one for one in held if one.param_groups is optimizer.param_groups and id(one) not in seen), None)
        if inside is None:
            return optimizer
        optimizer = inside
        seen.add(id(optimizer))


class Groups:
    """The groups of an optimizer, to be edited where nothing else depends on them.

    Schedulers keep a value for each group, and a saved state is loaded group by group. So another group breaks a
    scheduler that is there already, and the saved states of an optimizer that has taken a step.

    Attributes:
        optimizer: the optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def why_not_edited(self) -> str | None:
        """Return why the groups must stay as they are; None where they can be edited."""
        optimizer = self.optimizer
        wrapped = getattr(optimizer.step, "_wrapped_by_lr_sched", False)
        if wrapped or any("initial_lr" in group for group in optimizer.param_groups):
            return "a scheduler holds the optimizer"
        if optimizer.state or stepping(optimizer).state:
            return "the optimizer has taken a step, and its saved states would no longer load"
        if type(optimizer).add_param_group is not torch.optim.Optimizer.add_param_group:
            return f"{type(optimizer).__name__} keeps its groups in a way of its own"
        if isinstance(optimizer, torch.optim.LBFGS):
            return "LBFGS takes one group, when it is built"
        return holder_of(optimizer)

    def holds(self, parameter: Tensor) -> bool:
        """Return whether the optimizer has the Parameter."""
        return any(_holds(group, parameter) for group in self.optimizer.param_groups)

    def spare(self, change: Change, parameter: nn.Parameter) -> None:
        """Move a Parameter from its group to one with the same settings and no decay.

        Raises:
            RuntimeError: the groups must stay as they are.
        """
        self._check()
        for group in self.optimizer.param_groups:
            if group.get("weight_decay") and _holds(group, parameter):
                rest = [other for other in group["params"] if other is not parameter]
                without = _group_without_decay(change, self.optimizer, group)
                change.set_item(without, "params", [*without["params"], parameter])
                change.set_item(group, "params", rest)
                return

    def add(self, change: Change, parameters: Sequence[nn.Parameter], neighbour: Tensor) -> None:
        """Add Parameters to a group with the settings of a neighbour's and no decay.

        Raises:
            RuntimeError: the groups must stay as they are.
        """
        self._check()
        group = next(group for group in self.optimizer.param_groups if _holds(group, neighbour))
        without = _group_without_decay(change, self.optimizer, group) if group.get("weight_decay") else group
        change.set_item(without, "params", [*without["params"], *parameters])

    def _check(self) -> None:
        reason = self.why_not_edited()
        if reason is not None:
            raise RuntimeError(reason)


def _holds(group: dict[str, Any], parameter: Tensor) -> bool:
    return any(parameter is other for other in group["params"])


def _group_without_decay(change: Change, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """Return the group with the same settings and no decay; it is added if there is none."""

    def settings(of: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in of.items() if key not in ("params", "weight_decay")}

    for other in optimizer.param_groups:
        if not other.get("weight_decay") and repr(settings(other)) == repr(settings(group)):
            return other
    new: dict[str, Any] = {**group, "params": [], "weight_decay": 0.0}
    change.on_undo(lambda: _remove(optimizer.param_groups, new))
    change.forbid_undo(lambda: _why_not_removed(optimizer))
    optimizer.param_groups.append(new)
    return new


def _why_not_removed(optimizer: torch.optim.Optimizer) -> str | None:
    reason = holder_of(optimizer)
    return reason and f"{reason}, which has a value for each of the groups: delete it first, and build it again after"


def _remove(groups: list[dict[str, Any]], group: dict[str, Any]) -> None:
    groups[:] = [other for other in groups if other is not group]
