"""The share of the initial 0 and 1 in running statistics, and whether it explains that they do not match the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gammabeta.diagnostics.gap import gap_of
from gammabeta.diagnostics.measurement import Given
from gammabeta.diagnostics.record import Norm
from gammabeta.moments import Moments


def initial_share(norm: Norm) -> float | None:
    """Return the share of 0 and 1 in a norm's running statistics, (1 − m)ⁿ after n batches.

    None if it is unknown: nothing was counted, or others than 0 and 1 were written without counting.
    """
    if norm.momentum is None or norm.batches is None or (norm.batches == 0 and not norm.has_initial_statistics):
        return None
    return float((1 - norm.momentum) ** norm.batches)


def explained_by_initial(norm: Norm, calls: Sequence[Given]) -> bool:
    """Return whether the initial 0 and 1 explain why running statistics do not match what training gives the norm.

    With the share s of the initial values, data of mean μ and variance σ² leaves (1 − s)μ and (1 − s)σ² + s. The answer
    is yes if the running statistics match these.

    Args:
        norm: a BatchNorm with running statistics.
        calls: what training gives it in one forward, call by call.
    """
    share = initial_share(norm)
    if share is None or len(calls) != 1 or norm.running_mean is None or norm.running_var is None:
        return False
    moments = calls[0].moments
    degrees = moments.count - 1
    moved = Moments(moments.count, (1 - share) * moments.mean, (1 - share) * moments.m2 + share * degrees)
    gap = gap_of(replace(calls[0], moments=moved), norm.running_mean, norm.running_var, norm.eps or 0.0)
    return gap is not None and not gap.matters
