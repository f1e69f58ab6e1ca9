"""Application of fixes: each on its own, so that one that cannot be applied does not stop the others."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence, Set
from dataclasses import replace

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.finding import Finding, Recalibration
from gammabeta.diagnostics.optimizer_holders import searching_once
from gammabeta.diagnostics.wrong_statistics import is_broken, unmended_at, where_nothing_passes
from gammabeta.introspection.unchanged import random_states_kept
from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.recalibrate import of_the_first, recalibrate_what_can_be, why_not_recalibrated

# How often it is asked which statistics do not match either, now that others do.
_ROUNDS = 2


def mend(
    findings: Iterable[Finding],
    *,
    notes: bool,
    keep_checkpoints: bool,
    before: MutableMapping[int, Change],
    again: Callable[[], Sequence[Finding]] | None = None,
) -> Change:
    """Apply the fixes of findings as one change.

    Statistics that were wrong, or layers that were not frozen, hide whether the statistics behind them are right. So
    it is asked again once these are mended, and what shows is recalibrated too.

    Args:
        findings: the findings.
        notes, keep_checkpoints: as for `Diagnosis.fix`.
        before: by the id of a finding, the earlier change that has mended it; those of this one are added.
        again: returns what can be said now of statistics that do not match the data; None if it cannot be asked.

    Returns:
        The `Change`: what was changed, and what was left alone with the reason.
    """
    findings = tuple(findings)
    plain: list[Finding] = []
    freezing: list[Finding] = []
    stale: dict[int, list[Finding]] = {}
    with searching_once(), transaction("fix") as change:
        for finding in findings:
            if finding.severity == "note" and not notes:
                if finding.fix is not None and finding.fix.mends:
                    _leave(change, finding, f"a note, which fix(notes=True) mends: {finding.fix.what}")
                continue
            if id(finding) in before and before[id(finding)].stands:
                _leave(change, finding, "already done")
                continue
            reason = _why_left(finding, keep_checkpoints)
            if reason is not None or finding.fix is None:
                _leave(change, finding, reason or "no fix is known")
            elif finding.fix.recalibrations:
                stale.setdefault(id(finding.fix.recalibrations[0].model), []).append(finding)
            elif finding.fix.freezes is not None:
                freezing.append(finding)
            else:
                plain.append(finding)
        wanted = [norm for together in stale.values() for finding in together for norm in _norms(finding)]
        waiting = [finding for finding in plain if not _apply(change, finding, before=[n.module for n in wanted])]
        constant = where_nothing_passes(findings, {norm.name for norm in wanted})
        mended: set[str] = set()
        for together in stale.values():
            mended |= _recalibrate(change, together, constant)
        for finding in waiting:
            _apply(change, finding)
        frozen = False
        for finding in freezing:
            wrong = unmended_at(finding, findings, mended)
            if wrong is None:
                frozen |= _apply(change, finding)
            else:
                _leave(change, finding, _mend_first(wrong, finding))
        if again is not None and (mended or frozen):
            _mend_what_shows(change, findings, again, mended)
    left = {(entry.module, entry.what.partition(" ")[0]) for entry in change.entries if not entry.done}
    for finding in (*plain, *freezing, *itertools.chain(*stale.values())):
        if not any((name, finding.code) in left for name in finding.modules):
            before[id(finding)] = change
    return change


def _mend_what_shows(
    change: Change, findings: Sequence[Finding], again: Callable[[], Sequence[Finding]], mended: Set[str]
) -> None:
    """Recalibrate norms whose statistics turn out not to match, now that those before them do."""
    again_mended: set[str] = set()
    for _ in range(_ROUNDS):
        try:
            found = [finding for finding in again() if finding.severity != "note" and _norms(finding)]
        except Exception:  # the user's forward: what is mended so far stays
            return
        shown = [finding for finding in found if _names(finding) - again_mended]
        for finding in found:
            if finding not in shown:
                _leave(
                    change,
                    finding,
                    "its statistics are those of the loader's batches now: the inputs differ from these",
                )
        constant = where_nothing_passes(findings, mended | set().union(*map(_names, shown)))
        for finding in shown:
            again_mended |= _recalibrate(change, [finding], constant) | _names(finding)


def _names(finding: Finding) -> set[str]:
    return {norm.name for norm in _norms(finding)}


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


def _mend_first(wrong: Finding, finding: Finding) -> str:
    what = "" if wrong.fix is None else f": {wrong.fix.what.partition('; given')[0]}"
    then = "" if finding.fix is None else f"; then {finding.fix.what}"
    return f"mend {wrong.code} {wrong.name} first{what}{then}"


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


def _recalibrate(change: Change, findings: Sequence[Finding], constant: Mapping[str, Finding]) -> set[str]:
    """Recalibrate the norms of one model in one pass over its batches; those that cannot be are left.

    Args:
        change: the change, which takes up what was done.
        findings: all findings that recalibrate norms of this model.
        constant: by name, norms through which no difference between samples passes: those behind them are left.

    Returns:
        The names of the norms that have new statistics.
    """
    first = _norms(findings[0])[0]
    parts: dict[int, Change] = {}
    wanted: dict[nn.Module, Recalibration] = {}
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
            ahead = _ahead(norm, constant)
            if reason is not None:
                _leave(change, finding, f"cannot be recalibrated: {reason}", norm.name)
            elif ahead is not None:
                _leave(change, finding, f"it is behind {ahead.where}: {_mend_first(ahead, finding)}", norm.name)
            elif norm.module not in wanted or not norm.broken_only:
                wanted[norm.module] = norm
    broken = {norm.name: (norm.module, is_broken(norm.module)) for norm in wanted.values() if norm.broken_only}
    before = {name: [statistic.clone() for statistic in _statistics(module)] for name, (module, _) in broken.items()}
    done = Change("recalibrate")
    failure: Exception | None = None
    try:
        if wanted:
            with random_states_kept({tensor.device for tensor in first.model.parameters()}):  # a loader shuffles
                done = recalibrate_what_can_be(first.model, first.batches, where=list(wanted), forward=first.forward)
    except Exception as error:
        failure = error
    _rename(done, first.model, {module: norm.name for module, norm in wanted.items()})
    for name, (module, channels) in broken.items():
        if name in done.changed:
            _keep_the_others(done, name, module, channels, before[name])
    _say_whose(done, ready)
    mended = set(done.changed)
    for finding in ready:
        if mended.intersection(norm.name for norm in _norms(finding)):
            change.include(parts[id(finding)])
            for norm in _norms(finding):
                if norm.name in mended and bool(is_broken(norm.module).any()):
                    _leave(change, finding, "no batch gives some of its channels a finite input", norm.name)
        else:
            # Statistics that were attached and not estimated would be 0 and 1.
            parts[id(finding)].roll_back()
            if failure is not None:
                _leave_failed(change, finding, failure)
    change.include(done)
    return mended


def _say_whose(done: Change, findings: Sequence[Finding]) -> None:
    """Give the norms that were not recalibrated the finding that they were left with, and what to do."""
    of = {norm.name: finding for finding in reversed(findings) for norm in _norms(finding)}
    for i, entry in enumerate(done.entries):
        finding = of.get(entry.module)
        if not entry.done and finding is not None:
            todo = ": hand a loader whose batches give it finite inputs" if "finite" in entry.what else ""
            done.entries[i] = replace(entry, what=f"{finding.code} {finding.name}: {entry.what}{todo}")


def _ahead(norm: Recalibration, constant: Mapping[str, Finding]) -> Finding | None:
    """Return the finding about a norm that is registered ahead of this one, and through which nothing passes."""
    own = next(name for name, module in norm.model.named_modules() if module is norm.module)
    part = norm.name.removesuffix(own)  # "ema." if the model is a part of the one that was checked
    for name in (name for name, _ in norm.model.named_modules()):
        if name == own:
            return None
        if part + name in constant:
            return constant[part + name]
    return None


_KEYS = ("running_mean", "running_var", "num_batches_tracked")


def _statistics(module: nn.Module) -> list[Tensor]:
    return [buffer for key in _KEYS if (buffer := module._buffers.get(key)) is not None]


def _keep_the_others(done: Change, name: str, module: nn.Module, broken: Tensor, before: Sequence[Tensor]) -> None:
    """Give the channels that were not broken, and the count, their former values back."""
    mended = broken & ~is_broken(module)
    for key, new, old in zip(_KEYS, _statistics(module), before, strict=False):
        done.overwrite(module, key, old if key == _KEYS[2] else torch.where(mended, new, old))
    count, size = int(mended.sum()), int(broken.sum())
    at = next(i for i, entry in enumerate(done.entries) if entry.module == name and entry.done)
    if count:
        rest = f"; no batch gives the other {size - count} a finite input" if count < size else ""
        what = f"recalibrated in {count} of {broken.numel()} channels{rest}{of_the_first(done.entries[at].numbers)}"
    else:
        what = "no batch gives a finite input to the channels whose statistics are not finite"
    done.entries[at] = replace(done.entries[at], what=what, done=count > 0)


def _rename(done: Change, model: nn.Module, names: Mapping[nn.Module, str]) -> None:
    """Give the entries the names of the model that was checked, of which the recalibrated one may be a part."""
    known = {name: names[module] for name, module in model.named_modules(remove_duplicate=False) if module in names}
    done.entries = [replace(entry, module=known.get(entry.module, entry.module)) for entry in done.entries]
