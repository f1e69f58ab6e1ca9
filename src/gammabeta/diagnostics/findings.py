"""Findings of the check, and their fixes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

import gammabeta
from gammabeta.diagnostics import description, mending
from gammabeta.surgery.change import Change

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, eq=False)
class Recalibration:
    """A norm whose running statistics should be estimated from data.

    Attributes:
        name: its qualified name in the model that was checked.
        module: the norm.
        model: the model that contains the norm and runs on the batches.
        batches: batches in the form that the model takes.
        broken_only: whether only channels whose statistics are not finite, or a negative variance, get new ones.
    """

    name: str
    module: nn.Module
    model: nn.Module
    batches: Any
    broken_only: bool = False


@dataclass(frozen=True)
class Fix:
    """How to fix a finding.

    Attributes:
        what: a sentence or call that says what to do.
        apply: does it and returns the change; None if a person has to, or if something needed for it is missing.
        recalibrations: the norms to recalibrate after that, all of one model. All such norms of a model are
            recalibrated in one pass over the batches.
        together: returns one sentence or call that does it all, given the names of all modules with this fix. None
            where `what` says it; a `where='name'` in it then becomes the list of all names.
        keeps_checkpoints: whether the keys of the state_dict stay, so that checkpoints from before still load.
    """

    what: str
    apply: Callable[[], Change] | None = field(default=None, compare=False, repr=False)
    recalibrations: tuple[Recalibration, ...] = field(default=(), compare=False, repr=False)
    together: Callable[[Sequence[str]], str] | None = field(default=None, compare=False, repr=False)
    keeps_checkpoints: bool = field(default=True, compare=False, repr=False)

    @property
    def mends(self) -> bool:
        """Whether the fix can be done without a person."""
        return self.apply is not None or bool(self.recalibrations)

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
        evidence: the numbers by name. "layers" lists the modules if one finding is about several.
        fix: how to fix it.
    """

    code: str
    name: str
    severity: str
    where: str
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fix: Fix | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of all modules that the finding is about."""
        layers = self.evidence.get("layers")
        return tuple(layers) if isinstance(layers, list | tuple) else (self.where,)

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

    def fix(self, *, notes: bool = False, keep_checkpoints: bool = True) -> Change:
        """Apply the fixes of errors and warnings that need no person, in place, as one change that can be undone.

        Each fix is applied on its own. One that raises is rolled back and listed among what was left alone, and the
        others are applied. Norms whose statistics are wrong are recalibrated last, all in one pass over the loader of
        the check. What is frozen stays frozen. An optimizer that a scheduler holds, or that has taken a step, stays as
        it is. Outputs in evaluation change only where the finding says that they are wrong.

        Args:
            notes: whether notes are fixed too.
            keep_checkpoints: whether checkpoints from before must still load. False also applies fixes that add keys
                to the state_dict or take keys out of it.

        Returns:
            The `Change`. Errors and warnings that need a person, fixes that could not be applied, and notes that could
            be fixed are among what it left alone, with the reason and what to do.
        """
        return mending.mend(self.findings, notes=notes, keep_checkpoints=keep_checkpoints)

    def by_rule(self) -> Iterator[tuple[Finding, ...]]:
        """Yield the findings of each rule and severity together, in the order of `findings`."""
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.code, finding.severity), []).append(finding)
        return (tuple(group) for group in groups.values())

    def summary(self) -> str:
        """Return one line: the numbers of faults by severity, of modules that have them, of rules and of norms.

        Findings of one rule that differ only in modules and numbers are one fault.
        """
        return description.summary(self)

    def to_json(self, target: str | None = None) -> str:
        """Return the diagnosis as JSON, as `gammabeta check --format json` prints it: all findings with their evidence.

        Args:
            target: what was checked, by the name that you give it.

        Returns:
            The text of a JSON object. Numbers that JSON does not have are strings: "nan", "inf".
        """
        content = {
            "gammabeta": gammabeta.__version__,
            "target": target,
            "norms": self.norms,
            "findings": [_plain(finding) for finding in self.findings],
            "ignored": [{**_plain(finding), "reason": reason} for finding, reason in self.ignored],
            "rules": list(self.rules),
            "not run": {need: list(codes) for need, codes in self.idle.items()},
        }
        return json.dumps(content, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        return description.text(self)

    __repr__ = __str__

    def _of(self, severity: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)


def plain_evidence(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return evidence that fits into JSON, which has no NaN and no infinity."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return {str(key): plain(value) for key, value in evidence.items()}


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "where": finding.where,
        "message": finding.message,
        "evidence": plain_evidence(finding.evidence),
        "fix": None if finding.fix is None else finding.fix.what,
    }
