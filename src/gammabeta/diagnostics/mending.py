"""Application of fixes: each on its own, so that one that cannot be applied does not stop the others."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.recalibrate import recalibrate_what_can_be, why_not_recalibrated

if TYPE_CHECKING:
    from gammabeta.diagnostics.findings import Finding, Recalibration


def mend(findings: Iterable[Finding], *, notes: bool, keep_checkpoints: bool) -> Change:
    """Apply the fixes of findings as one change.

    Args:
        findings: the findings.
        notes, keep_checkpoints: as for `Diagnosis.fix`.

    Returns:
        The `Change`: what was changed, and what was left alone with the reason.
    """
    plain: list[Finding] = []
    stale: dict[int, list[Finding]] = {}
    with transaction("fix") as change:
        for finding in findings:
            if finding.severity == "note" and not notes:
                if finding.fix is not None and finding.fix.mends:
                    _leave(change, finding, f"a note, which fix(notes=True) mends: {finding.fix.what}")
                continue
            reason = _why_left(finding, keep_checkpoints)
            if reason is not None or finding.fix is None:
                _leave(change, finding, reason or "no fix is known")
            elif finding.fix.recalibrations:
                stale.setdefault(id(finding.fix.recalibrations[0].model), []).append(finding)
            else:
                plain.append(finding)
        wanted = [norm.module for together in stale.values() for finding in together for norm in _norms(finding)]
        waiting = [finding for finding in plain if not _apply(change, finding, before=wanted)]
        for together in stale.values():
            _recalibrate(change, together)
        for finding in waiting:
            _apply(change, finding)
    return change


def _norms(finding: Finding) -> tuple[Recalibration, ...]:
    return finding.fix.recalibrations if finding.fix is not None else ()


def _why_left(finding: Finding, keep_checkpoints: bool) -> str | None:
    """Return why a finding's fix is not applied, with what to do; None if it is."""
    fix = finding.fix
    if fix is None:
        return "no fix is known"
    if not fix.mends:
        return f"by hand: {fix.what}"
    if keep_checkpoints and not fix.keeps_checkpoints:
        return (
            f"{fix.what}: that changes the keys of the state_dict, so checkpoints from before would no longer load; "
            "fix(keep_checkpoints=False) does it"
        )
    return None


def _leave(change: Change, finding: Finding, reason: str, where: str | None = None) -> None:
    change.leave(finding.where if where is None else where, f"{finding.code} {finding.name}: {reason}")


def _leave_failed(change: Change, finding: Finding, error: Exception) -> None:
    lines = str(error).strip().splitlines() or ["without a message"]
    what = finding.fix.what if finding.fix is not None else ""
    _leave(change, finding, f"could not be applied ({type(error).__name__}: {lines[0]}); by hand: {what}")


def _apply(change: Change, finding: Finding, before: Sequence[nn.Module] = ()) -> bool:
    """Apply a fix, or leave it with what it raised.

    Returns:
        Whether that is all. False if the fix would stop the recalibration of the norms in `before`, as freezing them
        does: nothing of it is left then, and it has to wait.
    """
    assert finding.fix is not None
    assert finding.fix.apply is not None
    could = [norm for norm in before if why_not_recalibrated(norm) is None]
    try:
        part = _quietly(finding)
    except Exception as error:
        _leave_failed(change, finding, error)
        return True
    if any(why_not_recalibrated(norm) is not None for norm in could):
        part.roll_back()
        return False
    if part.changed:
        change.include(part)
    else:
        part.roll_back()
        reasons = "; ".join(dict.fromkeys(part.left.values())) or "nothing is left to change"
        _leave(change, finding, f"could not be applied ({reasons}); by hand: {finding.fix.what}")
    return True


def _quietly(finding: Finding) -> Change:
    """Apply a fix; what it warns of stands among the change's entries."""
    assert finding.fix is not None
    if finding.fix.apply is None:
        return Change("fix")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return finding.fix.apply()


def _recalibrate(change: Change, findings: Sequence[Finding]) -> None:
    """Recalibrate the norms of one model in one pass over its batches; those that cannot be are left with the reason."""
    first = _norms(findings[0])[0]
    parts: dict[int, Change] = {}
    names: dict[nn.Module, str] = {}
    ready: list[Finding] = []
    for finding in findings:
        try:
            parts[id(finding)] = _quietly(finding)
        except Exception as error:
            _leave_failed(change, finding, error)
            continue
        ready.append(finding)
        for norm in _norms(finding):
            reason = why_not_recalibrated(norm.module)
            if reason is None:
                names.setdefault(norm.module, norm.name)
            else:
                _leave(change, finding, f"cannot be recalibrated: {reason}", norm.name)
    done = Change("recalibrate")
    failure: Exception | None = None
    try:
        if names:
            done = recalibrate_what_can_be(first.model, first.batches, where=list(names))
    except Exception as error:
        failure = error
    _rename(done, first.model, names)
    mended = set(done.changed)
    for finding in ready:
        if mended.intersection(norm.name for norm in _norms(finding)):
            change.include(parts[id(finding)])
        else:
            # Statistics that were attached and not estimated would be 0 and 1.
            parts[id(finding)].roll_back()
            if failure is not None:
                _leave_failed(change, finding, failure)
    change.include(done)
    for module, name in names.items():
        statistics = (module._buffers.get("running_mean"), module._buffers.get("running_var"))
        if name in mended and any(values is not None and not bool(values.isfinite().all()) for values in statistics):
            why = "channels of which no batch has a finite input keep their statistics"
            _leave(change, next(f for f in ready if any(norm.name == name for norm in _norms(f))), why, name)


def _rename(done: Change, model: nn.Module, names: Mapping[nn.Module, str]) -> None:
    """Give the entries the names of the model that was checked, of which the recalibrated one may be a part."""
    known = {name: names[module] for name, module in model.named_modules(remove_duplicate=False) if module in names}
    done.entries = [replace(entry, module=known.get(entry.module, entry.module)) for entry in done.entries]
