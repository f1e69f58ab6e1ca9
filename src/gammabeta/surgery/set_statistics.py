"""Replacement of the source of statistics of a model's BatchNorms."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from gammabeta.introspection.norms import is_batch_norm
from gammabeta.introspection.where import Where, select
from gammabeta.layers.batch_norm import _BatchNorm
from gammabeta.statistics import Renorm, Running, Statistics
from gammabeta.surgery.adopt import adopt_module, drop_old_class, forget_source
from gammabeta.surgery.change import Change, transaction


def set_statistics(model: nn.Module, source: Statistics, *, where: Where = None) -> Change:
    """Take the statistics of the model's BatchNorms in training from `source`.

    Parameters, their names, hooks and the state of optimizers stay. torch's own BatchNorms are adopted on the way.
    Subclasses with a forward of their own are left alone, with the reason. The new source replaces what `freeze` did to
    the chosen layers' statistics.

    Args:
        model: any module.
        source: one of `gammabeta.statistics`, such as `Ghost(16)`.
        where: which BatchNorms: a glob on their names, a list, or a predicate `(name, module) -> bool`.

    Returns:
        The `Change`.

    Raises:
        TypeError: `source` is no source of statistics, or `where` is of another type.
        ValueError: `where` chooses nothing.
    """
    if inspect.isclass(source) or not callable(getattr(source, "normalize", None)):
        got = f"the class {source.__name__}: call it" if inspect.isclass(source) else f"{source!r}"
        raise TypeError(f"set_statistics: expected a source such as gammabeta.statistics.Ghost(16), got {got}.")
    with transaction("set_statistics") as change:
        chosen = select(model, where, is_batch_norm, operation="set_statistics", kind="BatchNorms")
        for name, module in chosen:
            if not ensure_ours(change, name, module):
                continue
            reason = why_not_source(module, source)
            if reason is not None:
                change.leave(name, reason)
                continue
            before = module.statistics
            change_source(change, name, module, source)
            change.note(name, f"{source} in place of {before}")
    return change


def ensure_ours(change: Change, name: str, module: nn.Module) -> bool:
    """Adopt a BatchNorm within the change unless it is ours; return False where it is left, with the reason."""
    if isinstance(module, _BatchNorm):
        return True
    before = len(change.entries)
    adopted = adopt_module(change, name, module)
    if adopted:
        del change.entries[before:]  # the caller's own entry replaces it
    return adopted


def why_not_source(module: Any, source: Statistics) -> str | None:
    """Return why a layer cannot get the source; None where it can."""
    if module.statistics == source:
        return f"its statistics are {source} already"
    if isinstance(source, Running | Renorm) and module.running_mean is None:
        return f"it has no running statistics, which {source} needs"
    return None


def change_source(change: Change, name: str, module: nn.Module, source: Statistics) -> None:
    """Set the source, and forget one that `freeze` replaced."""
    drop_old_class(change, name, module, source)
    change.set_attribute(module, "statistics", source, name)
    forget_source(change, name, module)
