"""Fixes that several rules share."""

from __future__ import annotations

from gammabeta.diagnosis import Fix
from gammabeta.record import Norm, Record
from gammabeta.surgery.recalibrate import recalibrate


def recalibration(record: Record, norm: Norm) -> Fix:
    """Population statistics in place of the running ones: at once where the check was given a loader."""
    model, loader = record.model, record.loader
    if model is None:
        return Fix("load it into the model, then gammabeta.recalibrate(model, batches)")
    where = [*norm.names]
    if loader is None:
        return Fix(f"gammabeta.recalibrate(model, batches, where={norm.name!r}); given loader= the check can do it")
    return Fix(
        f"gammabeta.recalibrate(model, loader, where={norm.name!r})", lambda: recalibrate(model, loader, where=where)
    )
