"""Another source of statistics for the BatchNorms of a model."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from gammabeta.introspection.norms import is_batch_norm
from gammabeta.introspection.where import Where, select
from gammabeta.layers.batch_norm import _BatchNorm
from gammabeta.statistics import Renorm, Running, Statistics
from gammabeta.surgery.adopt import adopt_module, forget_source, leave_old_class
from gammabeta.surgery.change import Change, transaction


def set_statistics(model: nn.Module, source: Statistics, *, where: Where = None) -> Change:
    """The statistics of the model's BatchNorms come from `source` in training, from now on.

    Parameters, their names, hooks and the state of optimizers stay. torch's own BatchNorms are adopted on the way;
    subclasses with a forward of their own are left alone, with the reason. What `freeze` did to the chosen layers'
    statistics is replaced.

    Args:
        model: any module.
        source: one of `gammabeta.statistics`, as `Ghost(16)`.
        where: which BatchNorms: a glob on their names, a list, or a predicate `(name, module) -> bool`.

    Returns:
        The `Change`.

    Raises:
        TypeError: source is none, or `where` cannot choose.
        ValueError: `where` chooses nothing.
    """
    if inspect.isclass(source) or not callable(getattr(source, "normalize", None)):
        got = f"the class {source.__name__}: call it" if inspect.isclass(source) else f"{source!r}"
        raise TypeError(f"set_statistics: expected a source such as gammabeta.statistics.Ghost(16), got {got}.")
    with transaction("set_statistics") as change:
        chosen = select(model, where, is_batch_norm, operation="set_statistics", kind="BatchNorms")
        for name, module in chosen:
            if not own(change, name, module):
                continue
            reason = why_not_source(module, source)
            if reason is not None:
                change.leave(name, reason)
                continue
            before = module.statistics
            change_source(change, name, module, source)
            change.note(name, f"{source} in place of {before}")
    return change


def own(change: Change, name: str, module: nn.Module) -> bool:
    """Whether it is a BatchNorm of ours, or could be adopted within the change; else it is left with the reason."""
    if isinstance(module, _BatchNorm):
        return True
    before = len(change.entries)
    adopted = adopt_module(change, name, module)
    if adopted:
        del change.entries[before:]  # what comes next is told in its place
    return adopted


def why_not_source(module: Any, source: Statistics) -> str | None:
    if module.statistics == source:
        return f"its statistics are {source} already"
    if isinstance(source, Running | Renorm) and module.running_mean is None:
        return f"it has no running statistics, which {source} needs"
    return None


def change_source(change: Change, name: str, module: nn.Module, source: Statistics) -> None:
    """The source, and no memory of one that was frozen."""
    leave_old_class(change, name, module, source)
    change.set_attribute(module, "statistics", source, name)
    forget_source(change, name, module)
