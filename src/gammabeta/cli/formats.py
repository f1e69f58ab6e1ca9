"""Output formats of a diagnosis, for people, editors and build servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gammabeta.cli.inspection import Inspection
from gammabeta.cli.places import place_of
from gammabeta.cli.sarif import as_sarif, failed_sarif, sentence
from gammabeta.diagnostics.checkpoints.contents import printable
from gammabeta.diagnostics.description import advice, faults, heading, hidden, remedies, skipped
from gammabeta.diagnostics.findings import Diagnosis

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}


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
    for line in (*hidden(diagnosis.unseen), *skipped(diagnosis.idle, command_line=True)):
        console.print(Text(line, "dim"))


def as_json(diagnosis: Diagnosis, target: str, notes: Sequence[str] = ()) -> str:
    """Return a diagnosis for programs: all findings with their evidence."""
    return diagnosis.to_json(printable(target), notes)


def failed_json(message: str, target: str) -> str:
    """Return the document of a check that could not be run: that of a check without findings, and the error."""
    content = json.loads(as_json(Diagnosis(()), target))
    return json.dumps({**content, "error": printable(message)}, indent=2)


def as_github(diagnosis: Diagnosis, file: str | None, line: int, notes: Sequence[str] = ()) -> str:
    """Return a diagnosis for GitHub Actions: one workflow command per finding, shown at the target's line.

    A target outside of the repository has no line to be shown at: its findings are shown at the workflow.
    """
    levels = {"error": "error", "warning": "warning", "note": "notice"}
    place = place_of(file, line)
    lines = []
    for finding in diagnosis.findings:
        where = f"file={_escaped(place.path, property=True)},line={place.line}," if place.outside is None else ""
        title = _escaped(f"{finding.code} {finding.name}", property=True)
        lines.append(f"::{levels[finding.severity]} {where}title={title}::{_escaped(sentence(finding))}")
    lines += [f"::notice title=gammabeta::{_escaped(note)}" for note in notes]
    return "\n".join([*lines, diagnosis.summary()])


def failed_github(message: str) -> str:
    """Return the workflow command of a check that could not be run."""
    return f"::error title=gammabeta::{_escaped(message)}"


def _escaped(text: str, *, property: bool = False) -> str:
    for character, code in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(character, code)
    return text.replace(":", "%3A").replace(",", "%2C") if property else text


@dataclass(frozen=True)
class Writer:
    """An output format for programs.

    Attributes:
        write: returns the document of an inspection: its diagnosis, target, file, line and notes.
        fail: returns the document of a check that could not be run, from the error's sentence and the target.
    """

    write: Callable[[Inspection], str]
    fail: Callable[[str, str], str]


WRITERS: dict[str, Writer] = {
    "json": Writer(
        lambda found: as_json(found.diagnosis, found.target, found.notes),
        failed_json,
    ),
    "sarif": Writer(
        lambda found: as_sarif(found.diagnosis, found.file, found.line, found.notes),
        lambda message, target: failed_sarif(message),
    ),
    "github": Writer(
        lambda found: as_github(found.diagnosis, found.file, found.line, found.notes),
        lambda message, target: failed_github(message),
    ),
}
