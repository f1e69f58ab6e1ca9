"""The options of a run of the benchmarks, and how it ends early; its files and its progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gammabeta.benchmarks.contest import Subject


class BenchError(Exception):
    """The benchmarks cannot be run as asked: one sentence, with what to do."""


class Interrupted(Exception):  # noqa: N818
    """The benchmarks were interrupted; the message says what was written."""


@dataclass(frozen=True)
class Plan:
    """The options of a run, after checks."""

    subjects: tuple[Subject, ...]
    threads: tuple[int, ...]
    rounds: int
    compiled: bool
    quick: bool
    out: Path
    command: str


def progress_bar(console: Console) -> Progress:
    """Return a progress bar, which is shown on terminals only."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def write(path: Path, text: str) -> None:
    """Write a file of the run.

    Raises:
        BenchError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path}: expected a file to write to, got {error.strerror}.") from None
