"""Output formats of a diagnosis, for people, editors and build servers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import gammabeta
from gammabeta.diagnostics.findings import Diagnosis, Finding, advice
from gammabeta.diagnostics.rule import Rule
from gammabeta.diagnostics.rules import RULES

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}
_SHOWN = 12
_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print a diagnosis for people: by rule, with module names, numbers, and what to do."""
    for group in diagnosis.by_rule():
        first = group[0]
        style = _STYLES[first.severity]
        console.print(Text.assemble((f"{first.code} {first.name}", style), f"  {first.severity}, {_count(len(group))}"))
        shown = group if len(group) <= _SHOWN + 1 else group[:_SHOWN]
        table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(width=0)
        table.add_column(style="cyan", overflow="fold")
        table.add_column(overflow="fold")
        for finding in shown:
            table.add_row("", Text(finding.where or "(the model)"), Text(finding.message))
        if len(shown) < len(group):
            table.add_row("", "…", Text(f"and {len(group) - len(shown)} more"))
        for what in advice(group):
            table.add_row("", Text("fix", style="green"), Text(what))
        console.print(table)
        console.print()
    for finding, reason in diagnosis.ignored:
        console.print(Text(f"ignored: {finding.where or '(the model)'} {finding.code} {finding.name}: {reason}", "dim"))
    console.print(Text(diagnosis.summary(), "bold"))
    for need, codes in diagnosis.idle.items():
        console.print(Text(f"skipped (needs {need}): {', '.join(codes)}", "dim"))


def as_json(diagnosis: Diagnosis, target: str) -> str:
    """Return a diagnosis for programs: all findings with their evidence."""
    content = {
        "gammabeta": gammabeta.__version__,
        "target": target,
        "norms": diagnosis.norms,
        "findings": [_plain(finding) for finding in diagnosis.findings],
        "ignored": [{**_plain(finding), "reason": reason} for finding, reason in diagnosis.ignored],
        "rules": list(diagnosis.rules),
        "not run": {need: list(codes) for need, codes in diagnosis.idle.items()},
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


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
            "properties": {"evidence": _evidence(finding.evidence)},
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


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "where": finding.where,
        "message": finding.message,
        "evidence": _evidence(finding.evidence),
        "fix": None if finding.fix is None else finding.fix.what,
    }


def _evidence(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return evidence that fits into JSON, which has no NaN and no infinity."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return {str(key): plain(value) for key, value in evidence.items()}


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


def _count(number: int) -> str:
    return f"{number} module{'' if number == 1 else 's'}"


WRITERS: dict[str, Callable[[Diagnosis, str, str | None, int], str]] = {
    "json": lambda diagnosis, target, file, line: as_json(diagnosis, target),
    "sarif": lambda diagnosis, target, file, line: as_sarif(diagnosis, file, line),
    "github": lambda diagnosis, target, file, line: as_github(diagnosis, file, line),
}
