"""SARIF 2.1.0, the form in which code scanning takes findings."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import gammabeta
from gammabeta.cli.places import Place, place_of
from gammabeta.diagnostics.checkpoints.contents import printable
from gammabeta.diagnostics.finding import plain_evidence
from gammabeta.diagnostics.findings import Diagnosis, Finding
from gammabeta.diagnostics.rule import Rule
from gammabeta.diagnostics.rules import RULES

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
# GitHub refuses a file with more results in a run, and texts of a rule that are longer.
_MOST_RESULTS, _LONGEST_TEXT = 25_000, 1024
_GROUPS = ("statistics", "batches", "architecture", "parameters", "processes", "deployment")
_PROBLEMS = {"error": "error", "warning": "warning", "note": "recommendation"}


def as_sarif(diagnosis: Diagnosis, file: str | None, line: int, notes: Sequence[str] = ()) -> str:
    """Return a diagnosis for code scanning, as SARIF 2.1.0 that GitHub's upload takes.

    A module is a logical location. The physical one is that of the target, relative to the repository's root; a target
    outside of the repository is shown at its pyproject.toml, since GitHub takes no file with results elsewhere.

    Args:
        diagnosis: the diagnosis.
        file, line: where the target is.
        notes: further sentences, such as what of a checkpoint was left out.

    Source: OASIS, Static Analysis Results Interchange Format 2.1.0; GitHub, SARIF support for code scanning.
    """
    ran = [rule for rule in RULES if rule.code in diagnosis.rules]
    index = {rule.code: i for i, rule in enumerate(ran)}
    place = place_of(file, line)
    every: list[tuple[Finding, str | None]] = [(finding, None) for finding in diagnosis.findings]
    every += diagnosis.ignored
    results: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    for finding, reason in every[:_MOST_RESULTS]:
        fingerprint = _fingerprint(finding, place)
        seen[fingerprint] += 1
        result = {
            "ruleId": finding.code,
            "ruleIndex": index[finding.code],
            "level": finding.severity,
            "message": {"text": sentence(finding)},
            "locations": [_location(finding, place)],
            "partialFingerprints": {
                # The one that GitHub goes by. Its own would be that of the line, which all modules of a model share.
                "primaryLocationLineHash": f"{fingerprint}:{seen[fingerprint]}",
                "module/v1": f"{finding.code}:{finding.where}",
            },
            "properties": {"evidence": plain_evidence(finding.evidence)},
        }
        if reason is not None:
            kind = "external" if reason.startswith("by ignore=") else "inSource"
            result["suppressions"] = [{"kind": kind, "justification": reason}]
        results.append(result)
    if len(every) > _MOST_RESULTS:
        notes = [*notes, f"{len(every) - _MOST_RESULTS:,} findings are left out: code scanning takes {_MOST_RESULTS:,}"]
    messages = [{"level": "note", "message": {"text": f"{note}."}} for note in notes]
    return _document(ran, results, {"executionSuccessful": True, "toolExecutionNotifications": messages})


def failed_sarif(message: str) -> str:
    """Return the document of a check that could not be run: valid, without results, and marked as failed."""
    notification = {"level": "error", "message": {"text": printable(message)}}
    return _document(list(RULES), [], {"executionSuccessful": False, "toolExecutionNotifications": [notification]})


def sentence(finding: Finding) -> str:
    """Return a finding as one line: the module, what is wrong, how to fix it."""
    fix = f" Fix: {finding.fix.what}." if finding.fix is not None else ""
    return f"{finding.where or '(the model)'}: {finding.message}.{fix}"


def _document(rules: Sequence[Rule], results: list[dict[str, Any]], invocation: dict[str, Any]) -> str:
    driver = {
        "name": "gammabeta",
        "version": gammabeta.__version__,
        "rules": [_descriptor(rule) for rule in rules],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "originalUriBaseIds": {"%SRCROOT%": {"description": {"text": "The root of the repository."}}},
        "results": results,
        "columnKind": "unicodeCodePoints",
    }
    # ASCII, so that no encoding of the standard output can damage it.
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _location(finding: Finding, place: Place) -> dict[str, Any]:
    region = {"startLine": place.line, "startColumn": 1, "endLine": place.line, "endColumn": place.end}
    location: dict[str, Any] = {
        "logicalLocations": [{"fullyQualifiedName": finding.where or "(the model)", "kind": "member"}],
        "physicalLocation": {
            "artifactLocation": {"uri": place.uri, "uriBaseId": "%SRCROOT%"},
            "region": region,
        },
    }
    if place.outside is not None:
        location["message"] = {"text": f"The target is not in the repository: it is {place.outside}."}
    return location


def _fingerprint(finding: Finding, place: Place) -> str:
    text = "\0".join((finding.code, finding.where, place.path, place.outside or ""))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _descriptor(rule: Rule) -> dict[str, Any]:
    name = "".join(part.capitalize() for part in rule.name.split("-"))
    group = int(rule.code.removeprefix("GB")[0]) - 1
    return {
        "id": rule.code,
        "name": name,
        "shortDescription": {"text": _cut(f"{rule.title}.")},
        "fullDescription": {"text": _cut(rule.line("What it does"))},
        "help": {
            "text": f"{rule.line('Why it matters')} Use instead: {rule.line('Use instead')}",
            "markdown": rule.page(),
        },
        "defaultConfiguration": {"level": rule.severity},
        "properties": {
            "tags": ["normalization", *_GROUPS[group : group + 1]],
            "precision": "high",
            "problem.severity": _PROBLEMS[rule.severity],
        },
    }


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"
