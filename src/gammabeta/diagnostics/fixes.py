"""Fixes that several rules share."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gammabeta.diagnostics.findings import Fix, Recalibration
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.surgery.change import Change


def recalibration(
    record: Record,
    norm: Norm,
    *,
    first: str = "",
    apply: Callable[[], Change] | None = None,
    model: nn.Module | None = None,
) -> Fix:
    """Population statistics in place of the running ones: done by the fix where the check was given a loader.

    Args:
        record: what is known.
        norm: the norm whose statistics are wrong.
        first: what has to be done before, in words that "and" can follow.
        apply: does it.
        model: what takes the batches, if it is not the model that was checked.
    """
    before = f"{first} and " if first else ""
    if record.model is None or norm.module is None:
        return Fix(f"{before}load it into the model, then gammabeta.recalibrate(model, batches)")
    if record.loader is None:
        return Fix(
            f"{before}gammabeta.recalibrate(model, batches, where={norm.name!r}); given loader= the check can do it"
        )
    todo = Recalibration(norm.module, record.model if model is None else model, record.loader)
    return Fix(f"{before}gammabeta.recalibrate(model, loader, where={norm.name!r})", apply, todo)
