"""A diagnosis in words: findings that differ only in modules and numbers as one line, and what to do as one call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gammabeta.diagnostics.finding import Finding
from gammabeta.diagnostics.rule_page import FEEDS, SEES
from gammabeta.diagnostics.wrong_statistics import unmended_at
from gammabeta.surgery.change import name_some

# At most this many names in a call, and fixes of one rule.
_LISTED, _FIXES = 8, 2
# What may differ between two messages that say the same: a list of numbers, a qualified name, a number.
_NUMBER = r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w|\.\w)"
_DIFFERS = re.compile(
    rf"(?P<list>{_NUMBER}(?:, {_NUMBER})+(?: and \d+ more)?)|(?P<number>{_NUMBER})|(?P<name>(?<![\w.])\w+(?:\.\w+)+)"
)
# The modules in a call.
_WHERE = re.compile(r"where=(?:'[^']*'|\[[^\]]*\])")
# What a user gives so that the rules that need it run: in Python, and on the command line.
_FEEDS = {SEES[letter]: FEEDS[letter] for letter in "DOL"} | {
    "watching the training": ("`with gammabeta.watch(model, optimizer):` around some steps", ""),
    "the model": ("gammabeta.check(model) after loading the checkpoint into it", "a target that builds the model"),
}


@dataclass(frozen=True)
class Fault:
    """Findings of one rule that say the same of several modules.

    Attributes:
        findings: the findings, which differ only in modules and numbers.
    """

    findings: tuple[Finding, ...]

    @property
    def severity(self) -> str:
        """The severity of all of them."""
        return self.findings[0].severity

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules, each once."""
        return tuple(dict.fromkeys(name for finding in self.findings for name in finding.modules))

    @property
    def names(self) -> str:
        """The modules in words: "layer1.0.bn1, layer1.0.bn2 and 50 more"."""
        return name_some([finding.where for finding in self.findings])

    @property
    def message(self) -> str:
        """The message, with a range in place of each number that differs, and "…" behind other things that do."""
        messages = list(dict.fromkeys(finding.message for finding in self.findings))
        if len(messages) == 1:
            return messages[0]
        columns = zip(*([match[0] for match in _DIFFERS.finditer(message)] for message in messages), strict=True)
        pieces = iter([_joined(column) for column in columns])
        return _DIFFERS.sub(lambda _: next(pieces), messages[0])


def faults(findings: Sequence[Finding]) -> list[Fault]:
    """Put findings together that differ only in modules and numbers, in their order."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.code, finding.severity, _template(finding.message)), []).append(finding)
    return [Fault(tuple(group)) for group in groups.values()]


def advice(group: Sequence[Finding]) -> list[str]:
    """Return what the findings of one rule say to do: one sentence or call for all modules with the same fix."""
    alike: dict[str, list[Finding]] = {}
    for finding in group:
        if finding.fix is not None:
            # Without names only: a number tells what to do at these modules.
            what = _WHERE.sub("where=…", finding.fix.what.replace(repr(finding.where), "…"))
            key = _DIFFERS.sub(lambda match: "<name>" if match.lastgroup == "name" else match[0], what)
            alike.setdefault(key, []).append(finding)
    every = [_together(findings) for findings in alike.values()]
    return every if len(every) <= _FIXES + 1 else [*every[:_FIXES], f"… and {len(every) - _FIXES} more like these"]


def remedies(findings: Sequence[Finding]) -> list[str]:
    """Say what `diagnosis.fix()` mends, and what is left to a person; nothing if there are no findings."""
    does: list[str] = []
    on_demand: dict[str, list[str]] = {}
    by_hand: list[str] = []
    mended = {norm.name for finding in findings if finding.fix is not None for norm in finding.fix.recalibrations}
    for finding in findings:
        fix = finding.fix
        # Statistics that another finding calls wrong are not frozen before they are mended.
        waits = finding.where not in mended and unmended_at(finding, findings, mended) is not None
        if fix is None or not fix.mends or waits:
            by_hand.append(finding.code)
            continue
        options = [
            *(["notes=True"] if finding.severity == "note" else []),
            *([] if fix.keeps_checkpoints else ["keep_checkpoints=False"]),
        ]
        (on_demand.setdefault(", ".join(options), []) if options else does).append(finding.code)
    parts = [f"diagnosis.fix() mends {_listed(does)}"] if does else []
    parts += [f"diagnosis.fix({options}) mends {_listed(codes)} too" for options, codes in on_demand.items()]
    if by_hand:
        rest = {code: f"the rest of {code}" if code in does else code for code in by_hand}
        parts.append(f"by hand: {_listed(list(rest.values()))}")
    return ["; ".join(parts)] if parts else []


def hidden(unseen: Sequence[str]) -> list[str]:
    """Say that norms whose inputs are not finite were not compared with them; nothing if there are none."""
    if not unseen:
        return []
    return [f"the input of {count_of(len(unseen), 'norm')} is not finite and was not looked at: mend that, check again"]


def skipped(idle: Mapping[str, Sequence[str]], *, command_line: bool = False) -> list[str]:
    """Say for each thing that was not given how many rules need it, and how to give it."""
    counts: dict[str, int] = {}
    for need, codes in idle.items():
        first = need.split(" or ")[0]
        counts[first] = counts.get(first, 0) + len(codes)
    lines = []
    for need, count in counts.items():
        call, option = _FEEDS.get(need, (f"give {need}", ""))
        lines.append(f"{count_of(count, 'rule')} skipped without {need}: {option if command_line and option else call}")
    return lines


def paragraph(group: Sequence[Finding]) -> list[str]:
    """Return the lines about one rule: its heading, each fault, and what to do."""
    every = faults(group)
    width = max(len(fault.names) for fault in every)
    return [
        heading(group),
        *(f"  {fault.names:<{width}}  {fault.message}" for fault in every),
        *(f"  fix: {what}" for what in advice(group)),
    ]


def heading(group: Sequence[Finding]) -> str:
    """Return the first line about a rule: its code, name, severity and number of modules."""
    first = group[0]
    count = len(dict.fromkeys(name for finding in group for name in finding.modules))
    return f"{first.code} {first.name} ({first.severity}, {count_of(count, 'module')})"


def _template(message: str) -> str:
    return _DIFFERS.sub(lambda match: f"<{match.lastgroup}>", message)


def _joined(values: Sequence[str]) -> str:
    """Return what stands for several values at one place of a message."""
    if len(set(values)) == 1:
        return values[0]
    if all(re.fullmatch(_NUMBER, value) for value in values):
        ordered = sorted(values, key=float)
        return f"{ordered[0]} to {ordered[-1]}"
    return f"{values[0]} …"


def _together(findings: Sequence[Finding]) -> str:
    """Return one sentence or call that does what the fixes of all these findings say."""
    first = findings[0]
    assert first.fix is not None
    where = list(dict.fromkeys(finding.where for finding in findings))
    if len(where) == 1:
        return first.fix.what
    every = f'[f.where for f in diagnosis.findings if f.code == "{first.code}"]'
    if first.fix.together is not None:
        what = first.fix.together(where)
        # As in the list below; globs are fewer than the modules.
        return _WHERE.sub(f"where={every}", what) if _number_in_call(what) > _LISTED else what
    listed = str(where) if len(where) <= _LISTED else every
    return first.fix.what.replace(f"where={first.where!r}", f"where={listed}")


def _number_in_call(what: str) -> int:
    """Return how many modules a call lists."""
    found = _WHERE.search(what)
    return 0 if found is None else found[0].count("'") // 2


def _listed(codes: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(codes))


def count_of(number: int, what: str) -> str:
    """Return a number of things in words: "1 rule", "2 rules"."""
    return f"{number} {what}{'' if number == 1 else 's'}"
