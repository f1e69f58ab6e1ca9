"""Findings that running statistics are wrong: what must not be frozen, and what no statistics can be taken behind."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from gammabeta.diagnostics.finding import Finding

# Codes of the rules which say so: statistics that are not finite; that are as constructed; and those of which only a
# recalibration tells that they are right again.
_NOT_FINITE, _AS_CONSTRUCTED, _OTHERS = "GB102", ("GB103", "GB113"), ("GB108", "GB109", "GB309")
# The rule of norms behind which nothing tells the samples apart.
_CONSTANT = "GB309"


def unmended_at(freezing: Finding, findings: Sequence[Finding], mended: Collection[str]) -> Finding | None:
    """Return the first error or warning that calls the statistics wrong which a fix would freeze, and still holds.

    Args:
        freezing: a finding whose fix freezes statistics.
        findings: all findings.
        mended: the names of the norms that have been recalibrated.
    """
    norm = freezing.fix.freezes if freezing.fix is not None else None
    if norm is None:
        return None
    for finding in findings:
        if finding.severity == "note":
            continue
        here = freezing.where in finding.modules
        if finding.code == _NOT_FINITE:
            wrong = here and bool(is_broken(norm).any())
        elif finding.code in _AS_CONSTRUCTED:
            # It is about all frozen norms, and names the first.
            wrong = _is_as_constructed(norm)
        else:
            wrong = finding.code in _OTHERS and here and freezing.where not in mended
        if wrong:
            return finding
    return None


def where_nothing_passes(findings: Sequence[Finding], recalibrated: Collection[str]) -> dict[str, Finding]:
    """Return, by name, the norms behind which all samples are the same, but for those that will be recalibrated."""
    return {
        finding.where: finding
        for finding in findings
        if finding.code == _CONSTANT and finding.where not in recalibrated
    }


def is_broken(norm: nn.Module) -> Tensor:
    """Return which channels have statistics that are not finite, or a negative variance."""
    mean, var = _statistics(norm)
    return ~(mean.isfinite() & var.isfinite() & (var >= 0))


def _is_as_constructed(norm: nn.Module) -> bool:
    mean, var = _statistics(norm)
    return not bool(mean.any()) and bool((var == 1).all())


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    mean, var = norm._buffers["running_mean"], norm._buffers["running_var"]
    assert mean is not None
    assert var is not None
    return mean, var
