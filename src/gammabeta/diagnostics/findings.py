"""The findings of a check together: what it prints, and the fix of them all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gammabeta.diagnostics.description import advice, count_of, faults, hidden, paragraph, remedies, skipped
from gammabeta.diagnostics.finding import SEVERITIES, Finding, Fix, Recalibration, as_plain
from gammabeta.diagnostics.mending import mend
from gammabeta.pages.notebook import table
from gammabeta.surgery.change import Change

__all__ = ["SEVERITIES", "Diagnosis", "Finding", "Fix", "Recalibration"]


@dataclass(frozen=True)
class Diagnosis:
    """The findings of a check; it prints them by rule, with the modules, the numbers and what to do.

    Attributes:
        findings: all findings, errors first, then by rule and in the model's order.
        ignored: findings that do not count, each with the reason.
        norms: number of norms that were looked at.
        rules: codes of the rules that ran.
        idle: what the rules that did not run would need, with their codes: "inputs" → ("GB107", …).
        unseen: names of the norms whose inputs were not finite. Nothing that needs their inputs was looked at.
    """

    findings: tuple[Finding, ...]
    ignored: tuple[tuple[Finding, str], ...] = ()
    norms: int = 0
    rules: tuple[str, ...] = ()
    idle: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    _again: Callable[[], Sequence[Finding]] | None = field(default=None, repr=False, compare=False)
    _mended: dict[int, Change] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        the check. Where that shows that the statistics behind them do not match either, these are recalibrated too. Of
        a loader without a length, which may never end, a pass takes no more than brings all standard errors down to
        0.02, and at most 1000 batches; the `Change` says how many. What is frozen stays frozen. An optimizer that a
        scheduler holds, or that has taken a step, stays as it is. Outputs in evaluation change only where the finding
        says that they are wrong.

        Args:
            notes: whether notes are fixed too.
            keep_checkpoints: whether checkpoints from before must still load. False also applies fixes that add keys
                to the state_dict or take keys out of it.

        Returns:
            The `Change`. Errors and warnings that need a person, fixes that could not be applied, and notes that could
            be fixed are among what it left alone, with the reason and what to do.
        """
        return mend(
            self.findings, notes=notes, keep_checkpoints=keep_checkpoints, before=self._mended, again=self._again
        )

    def by_rule(self) -> Iterator[tuple[Finding, ...]]:
        """Yield the findings of each rule and severity together, in the order of `findings`."""
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.code, finding.severity), []).append(finding)
        return (tuple(group) for group in groups.values())

    def summary(self) -> str:
        """Return one line: the numbers of faults by severity, of modules that have them, of rules and of norms.

        Where rules did not run for want of something, it says of how many. Findings of one rule that differ only in
        modules and numbers are one fault.
        """
        every = faults(self.findings)
        counts = [
            count_of(number, severity)
            for severity in SEVERITIES
            if (number := sum(fault.severity == severity for fault in every))
        ]
        modules = len(dict.fromkeys(name for fault in every for name in fault.modules))
        at = f" at {count_of(modules, 'module')}" if counts else ""
        ignored = f" ({len(self.ignored)} ignored)" if self.ignored else ""
        able = len({*self.rules, *(code for codes in self.idle.values() for code in codes)})
        looked = count_of(able, "rule") if able == len(self.rules) else f"{len(self.rules)} of {able} rules"
        if not self.norms and not counts and not self.ignored:
            return f"nothing found, as there are no norms: {looked}"
        looked += f", {count_of(self.norms, 'norm')}"
        return f"{', '.join(counts) or 'nothing found'}{at}{ignored}: {looked}"

    def to_json(self, target: str | None = None, notes: Sequence[str] = ()) -> str:
        """Return the diagnosis as JSON, as `gammabeta check --format json` prints it: all findings with their evidence.

        Args:
            target: what was checked, by the name that you give it.
            notes: sentences to add about the target.

        Returns:
            The text of a JSON object. Numbers that JSON does not have are strings: "nan", "inf".
        """
        content = {
            "gammabeta": _version(),
            "target": target,
            "norms": self.norms,
            "findings": [as_plain(finding) for finding in self.findings],
            "ignored": [{**as_plain(finding), "reason": reason} for finding, reason in self.ignored],
            "rules": list(self.rules),
            "not run": {need: list(codes) for need, codes in self.idle.items()},
            "unseen": list(self.unseen),
            "notes": list(notes),
        }
        return json.dumps(content, indent=2)  # ASCII, so that no encoding of a standard output can damage it

    def __str__(self) -> str:
        lines = [line for group in self.by_rule() for line in (*paragraph(group), "")]
        lines.append(self.summary())
        lines += [f"  {line}" for line in (*remedies(self.findings), *hidden(self.unseen), *skipped(self.idle))]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = []
        for group in self.by_rule():
            first, *more = faults(group)
            rule = f"{first.findings[0].code} {first.findings[0].name} ({first.severity})"
            what = "\n".join(advice(group))
            rows.append((rule, first.names, first.message, what))
            rows += [("", fault.names, fault.message, "") for fault in more]
        below = (*remedies(self.findings), *hidden(self.unseen), *skipped(self.idle))
        return table(self.summary(), ("rule", "modules", "finding", "fix"), rows, below)

    def _of(self, severity: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)


def _version() -> str:
    # The package imports this module, so it is there when this is called, and not when this is imported.
    return str(sys.modules[__name__.partition(".")[0]].__version__)
