"""Choice of the edits that may stay: those with which the model's outputs keep within the tolerance, together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn

from gammabeta.surgery.change import Change
from gammabeta.surgery.folding.compare import Comparison

Edit: TypeAlias = "Callable[[Change], None]"
"""One edit of a model, recorded in the change that it is given."""


@dataclass(frozen=True)
class Settled:
    """What stays of a number of edits.

    Attributes:
        error: the largest relative error of the model as it is now.
        rejected: by name, why an edit was undone, and the error with which it was.
    """

    error: float
    rejected: dict[str, tuple[str, float]] = field(default_factory=dict)


def settle(model: nn.Module, edits: Mapping[str, Edit], comparison: Comparison) -> Settled:
    """Make as many of the edits as keep the model within the tolerance, and leave no trace of the others.

    First all are made. Where that exceeds the tolerance, each is tried on its own. Those that keep it are made
    together, and where this exceeds it too, one after another from the smallest error up: an edit with which the sum
    exceeds the tolerance is left out. Whatever is left out is undone before the next is tried.

    Args:
        model: changed in place. It is within the tolerance before.
        edits: by name, in the order in which they are made.
        comparison: with the original.
    """
    change, error, _ = _attempt(model, edits, comparison)
    if error <= comparison.tolerance:
        return Settled(error)
    change.undo()
    rejected: dict[str, tuple[str, float]] = {}
    alone: dict[str, float] = {}
    for name, edit in edits.items():
        change, error, why = _attempt(model, {name: edit}, comparison)
        change.undo()
        if error <= comparison.tolerance:
            alone[name] = error
        else:
            rejected[name] = _reject("", error, why, comparison)
    if rejected and alone:
        change, error, _ = _attempt(model, {name: edits[name] for name in edits if name in alone}, comparison)
        if error <= comparison.tolerance:
            return Settled(error, rejected)
        change.undo()
    kept: set[str] = set()
    for name in sorted(alone, key=alone.__getitem__):
        change, error, why = _attempt(model, {n: edits[n] for n in edits if n in kept or n == name}, comparison)
        change.undo()
        if error <= comparison.tolerance:
            kept.add(name)
        else:
            rejected[name] = _reject(f" together with {len(kept)} others", error, why, comparison)
    change, error, _ = _attempt(model, {name: edits[name] for name in edits if name in kept}, comparison)
    return Settled(error, rejected)


def _attempt(model: nn.Module, edits: Mapping[str, Edit], comparison: Comparison) -> tuple[Change, float, str]:
    """Make the edits; return the change, the model's error with it, and what went wrong where that is infinite."""
    change = Change("fold")
    for edit in edits.values():
        edit(change)
    return change, *comparison.error(model)


def _reject(how: str, error: float, why: str, comparison: Comparison) -> tuple[str, float]:
    off = why or f"the output is off by {error:.1e}, more than {comparison.tolerance:.0e}"
    return f"with it{how}, {off}", error
