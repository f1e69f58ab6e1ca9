"""Output formats of a diagnosis, for people, editors and build servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import gammabeta
from gammabeta.diagnostics.description import advice, faults, heading, remedies, skipped
from gammabeta.diagnostics.finding import plain_evidence
from gammabeta.diagnostics.findings import Diagnosis, Finding
from gammabeta.diagnostics.rule import Rule
from gammabeta.diagnostics.rules import RULES

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}
_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print a diagnosis for people: by rule, with module names, numbers, and what to do."""
    for group in diagnosis.by_rule():
        code, _, rest = heading(group).partition(" (")
        console.print(Text.assemble((code, _STYLES[group[0].severity]), f"  {rest.removesuffix(')')}"))
        table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(width=0)
        table.add_column(style="cyan", overflow="fold")
        table.add_column(overflow="fold")
        for fault in faults(group):
            table.add_row("", Text(fault.names), Text(fault.message))
        for what in advice(group):
            table.add_row("", Text("fix", style="green"), Text(what))
        console.print(table)
        console.print()
    for finding, reason in diagnosis.ignored:
        console.print(Text(f"ignored: {finding.where or '(the model)'} {finding.code} {finding.name}: {reason}", "dim"))
    console.print(Text(diagnosis.summary(), "bold"))
    for line in remedies(diagnosis.findings):
        console.print(Text(f"in Python, {line}" if line.startswith("diagnosis") else line))
    for line in skipped(diagnosis.idle, command_line=True):
        console.print(Text(line, "dim"))


def as_json(diagnosis: Diagnosis, target: str) -> str:
    """Return a diagnosis for programs: all findings with their evidence."""
    return diagnosis.to_json(target)


def as_sarif(diagnosis: Diagnosis, file: str | None, line: int) -> str:
    """Return a diagnosis for code scanning, as SARIF 2.1.0.

    A module is a logical location; the physical one is that of the target.

    Source: OASIS, Static Analysis Results Interchange Format 2.1.0.
    """
    ran = [rule for rule in RULES if rule.code in diagnosis.rules]
    index = {rule.code: i for i, rule in enumerate(ran)}
    results = []
    every: list[tuple[Finding, str | None]] = [(finding, None) for finding in diagnosis.findings]
    for finding, reason in [*every, *diagnosis.ignored]:
        location: dict[str, Any] = {
            "logicalLocations": [{"fullyQualifiedName": finding.where or "(the model)", "kind": "member"}]
        }
        if file is not None:
            artifact = {"uri": file.replace("\\", "/")}
            location["physicalLocation"] = {"artifactLocation": artifact, "region": {"startLine": line}}
        result = {
            "ruleId": finding.code,
            "ruleIndex": index[finding.code],
            "level": finding.severity,
            "message": {"text": _sentence(finding)},
            "locations": [location],
            "partialFingerprints": {"module/v1": f"{finding.code}:{finding.where}"},
            "properties": {"evidence": plain_evidence(finding.evidence)},
        }
        if reason is not None:
            result["suppressions"] = [{"kind": "inSource", "justification": reason}]
        results.append(result)
    driver = {"name": "gammabeta", "version": gammabeta.__version__, "rules": [_descriptor(rule) for rule in ran]}
    run = {"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints"}
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False)


def as_github(diagnosis: Diagnosis, file: str | None, line: int) -> str:
    """Return a diagnosis for GitHub Actions: one workflow command per finding, shown at the target's line."""
    levels = {"error": "error", "warning": "warning", "note": "notice"}
    lines = []
    for finding in diagnosis.findings:
        place = f"file={_escaped(file, property=True)},line={line}," if file is not None else ""
        title = _escaped(f"{finding.code} {finding.name}", property=True)
        lines.append(f"::{levels[finding.severity]} {place}title={title}::{_escaped(_sentence(finding))}")
    return "\n".join([*lines, diagnosis.summary()])


def _sentence(finding: Finding) -> str:
    fix = f" Fix: {finding.fix.what}." if finding.fix is not None else ""
    return f"{finding.where or '(the model)'}: {finding.message}.{fix}"


def _descriptor(rule: Rule) -> dict[str, Any]:
    name = "".join(part.capitalize() for part in rule.name.split("-"))
    return {
        "id": rule.code,
        "name": name,
        "shortDescription": {"text": f"{rule.title}."},
        "fullDescription": {"text": rule.line("What it does")},
        "help": {"text": f"{rule.line('Why it matters')} Use instead: {rule.line('Use instead')}"},
        "defaultConfiguration": {"level": rule.severity},
    }


def _escaped(text: str, *, property: bool = False) -> str:
    for character, code in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(character, code)
    return text.replace(":", "%3A").replace(",", "%2C") if property else text


WRITERS: dict[str, Callable[[Diagnosis, str, str | None, int], str]] = {
    "json": lambda diagnosis, target, file, line: as_json(diagnosis, target),
    "sarif": lambda diagnosis, target, file, line: as_sarif(diagnosis, file, line),
    "github": lambda diagnosis, target, file, line: as_github(diagnosis, file, line),
}
