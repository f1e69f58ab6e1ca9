"""Findings of the check, and their fixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gammabeta.introspection.forward import Forward
from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.recalibrate import recalibrate

SEVERITIES = ("error", "warning", "note")
# At most this many modules, and this many different fixes, are printed per rule.
_SHOWN, _FIXES = 8, 3


@dataclass(frozen=True, eq=False)
class Recalibration:
    """A norm whose running statistics should be estimated from data.

    Attributes:
        module: the norm.
        model: the model that contains the norm and runs on the batches.
        batches: batches in the form that the model takes.
        forward: `forward(model, batch)`, if they go through the model in a way of their own.
    """

    module: nn.Module
    model: nn.Module
    batches: Any
    forward: Forward | None = None


@dataclass(frozen=True)
class Fix:
    """How to fix a finding.

    Attributes:
        what: a sentence or call that says what to do.
        apply: does it and returns the change; None if a person has to, or if something needed for it is missing.
        recalibration: the norm to recalibrate after that. All such norms of a model are recalibrated in one pass over
            the batches.
    """

    what: str
    apply: Callable[[], Change] | None = field(default=None, compare=False, repr=False)
    recalibration: Recalibration | None = field(default=None, compare=False, repr=False)

    @property
    def mends(self) -> bool:
        """Whether the fix can be done without a person."""
        return self.apply is not None or self.recalibration is not None

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, at one module.

    Attributes:
        code, name: code and name of the rule: "GB101", "frozen-norm-thaws".
        severity: "error", "warning" or "note".
        where: the module's qualified name; "" is the model itself.
        message: what is wrong, with its numbers.
        evidence: the numbers by name.
        fix: how to fix it.
    """

    code: str
    name: str
    severity: str
    where: str
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fix: Fix | None = None

    def __str__(self) -> str:
        return f"{self.where or '(the model)'}: {self.code} {self.name}: {self.message}"


@dataclass(frozen=True)
class Diagnosis:
    """The findings of a check; it prints them by rule, with the modules, the numbers and what to do.

    Attributes:
        findings: all findings, errors first, then by rule and in the model's order.
        ignored: findings that do not count, each with the reason.
        norms: number of norms that were looked at.
        rules: codes of the rules that ran.
        idle: what the rules that did not run would need, with their codes: "inputs" → ("GB107", …).
    """

    findings: tuple[Finding, ...]
    ignored: tuple[tuple[Finding, str], ...] = ()
    norms: int = 0
    rules: tuple[str, ...] = ()
    idle: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that are errors."""
        return self._of("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that are warnings."""
        return self._of("warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """The findings that are notes."""
        return self._of("note")

    def fix(self) -> Change:
        """Apply all fixes that need no person, in place, as one change that can be undone.

        Returns:
            The `Change`. Findings to fix by hand are among what it left alone, with what to do.

        Raises:
            Exception: whatever a fix raises; the model is then as before.
        """
        stale: dict[int, list[Recalibration]] = {}
        with transaction("fix") as change:
            for finding in self.findings:
                fix = finding.fix
                if fix is None or not fix.mends:
                    by_hand = fix.what if fix is not None else "no fix is known"
                    change.leave(finding.where, f"{finding.code} {finding.name}: {by_hand}")
                    continue
                if fix.apply is not None:
                    change.include(fix.apply())
                if fix.recalibration is not None:
                    stale.setdefault(id(fix.recalibration.model), []).append(fix.recalibration)
            for norms in stale.values():
                first, where = norms[0], list(dict.fromkeys(norm.module for norm in norms))
                change.include(recalibrate(first.model, first.batches, where=where, forward=first.forward))
        return change

    def by_rule(self) -> Iterator[tuple[Finding, ...]]:
        """Yield the findings of each rule and severity together, in the order of `findings`."""
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.code, finding.severity), []).append(finding)
        return (tuple(group) for group in groups.values())

    def summary(self) -> str:
        """Return one line: the numbers of findings by severity, of rules and of norms."""
        counts = [(len(self._of(severity)), severity) for severity in SEVERITIES]
        found = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts if count)
        ignored = f" ({len(self.ignored)} ignored)" if self.ignored else ""
        return f"{found or 'nothing found'}{ignored}: {_count(len(self.rules), 'rule')}, {_count(self.norms, 'norm')}"

    def __str__(self) -> str:
        lines = []
        for group in self.by_rule():
            first = group[0]
            lines.append(f"{first.code} {first.name} ({first.severity}, {_count(len(group), 'module')})")
            shown = group[: _SHOWN if len(group) > _SHOWN + 1 else None]
            width = max(len(finding.where or "(the model)") for finding in shown)
            lines += [f"  {finding.where or '(the model)':<{width}}  {finding.message}" for finding in shown]
            if len(shown) < len(group):
                lines.append(f"  … and {len(group) - len(shown)} more")
            lines += [f"  fix: {what}" for what in advice(group)]
            lines.append("")
        lines.append(self.summary())
        lines += [f"  skipped (needs {need}): {', '.join(codes)}" for need, codes in self.idle.items()]
        return "\n".join(lines)

    __repr__ = __str__

    def _of(self, severity: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)


def advice(group: tuple[Finding, ...]) -> list[str]:
    """Return what the findings of one rule say to do: each sentence once, the first few only."""
    every = list(dict.fromkeys(finding.fix.what for finding in group if finding.fix is not None))
    return every[:_FIXES] if len(every) <= _FIXES + 1 else [*every[:_FIXES], f"… and {len(every) - _FIXES} more"]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
