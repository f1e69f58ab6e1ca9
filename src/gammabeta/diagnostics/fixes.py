"""Fixes shared by several rules."""

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
    """Build the fix that replaces running statistics by population statistics.

    The fix recalibrates on its own if the check was given a loader; otherwise it says what to call.

    Args:
        record: what is known about the model.
        norm: the norm whose statistics are wrong.
        first: what has to be done first, in words that "and" can follow.
        apply: does what has to be done first.
        model: the model that runs on the batches, if it is not the one that was checked.

    Returns:
        The `Fix`.
    """
    before = f"{first} and " if first else ""
    if record.model is None or norm.module is None:
        return Fix(f"{before}load it into the model, then gammabeta.recalibrate(model, batches)")
    if record.loader is None:
        return Fix(
            f"{before}gammabeta.recalibrate(model, batches, where={norm.name!r}); given loader=, the fix does it"
        )
    todo = Recalibration(norm.module, record.model if model is None else model, record.loader, record.forward)
    return Fix(f"{before}gammabeta.recalibrate(model, loader, where={norm.name!r})", apply, todo)
