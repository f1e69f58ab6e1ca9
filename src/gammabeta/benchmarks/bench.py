"""The benchmarks: ours beside torch's and torch.compile's, as a table on the screen and a dated Markdown file.

A file is written after every row, under a name that marks it as partial. The finished file replaces it.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

import gammabeta
from gammabeta.arguments import did_you_mean
from gammabeta.benchmarks.contest import Result, Subject, contest
from gammabeta.benchmarks.page import page, show
from gammabeta.benchmarks.plan import BenchError, Interrupted, Plan, progress_bar, write
from gammabeta.benchmarks.ring import compiling
from gammabeta.benchmarks.subjects import SUBJECTS

__all__ = ["BenchError", "Interrupted", "Plan", "bench"]

ROUNDS, QUICK_ROUNDS = 15, 5
OUT = "gammabeta-bench"


def bench(
    subjects: Sequence[str] | None = None,
    *,
    threads: Sequence[int] | None = None,
    rounds: int | None = None,
    out: str | Path = OUT,
    compiled: bool = True,
    quick: bool = False,
    console: Console | None = None,
) -> list[Path]:
    """Time ours beside torch's, and write a file for each subject.

    Sets malloc to keep its pages for the rest of the process (`gammabeta.warm_allocator`).

    Args:
        subjects: names of files in benchmarks/subjects/; None for all.
        threads: numbers of torch's threads, measured one after the other; None for one and for all that torch has.
        rounds: timings per contestant and row, at least 2; None for 15, or 5 if quick.
        out: folder for `<subject>-<date>.md`.
        compiled: whether torch.compile takes part. It compiles once per row and number of threads.
        quick: few rows and rounds.
        console: where to print; None for the terminal.

    Returns:
        The files that were written.

    Raises:
        BenchError: an unknown subject, an unusable number or folder.
        Interrupted: after Ctrl-C. What was measured is in a file marked as partial.
    """
    console = console or Console()
    plan = _plan(subjects, threads, rounds, out, compiled, quick)
    warmed = gammabeta.warm_allocator()
    before = torch.get_num_threads()
    written = []
    try:
        for subject in plan.subjects:
            reason = subject.missing()
            if subject.compiles and not plan.compiled:
                reason = "it times torch.compile alone: leave --no-compile out"
            if reason:
                console.print(f"[yellow]{subject.name} is skipped:[/] {escape(reason)}", highlight=False)
                continue
            measure = subject.measure or _measure
            written.append(measure(subject, plan, str(warmed), console))
    finally:
        torch.set_num_threads(before)
    return written


def _plan(
    names: Sequence[str] | None,
    threads: Sequence[int] | None,
    rounds: int | None,
    out: str | Path,
    compiled: bool,
    quick: bool,
) -> Plan:
    """Check the options.

    Raises:
        BenchError: as `bench`.
    """
    known = {subject.name: subject for subject in SUBJECTS}
    for name in names or ():
        if name not in known:
            every = f"there are {', '.join(known)}."
            meant = did_you_mean(name.replace("-", "_"), known, every, cutoff=0.4, show=str)
            raise BenchError(f"there is no subject {name}: {meant}")
    chosen = tuple(subject for subject in SUBJECTS if not names or subject.name in names)
    counts = tuple(dict.fromkeys(threads or (1, torch.get_num_threads())))
    if min(counts) < 1:
        raise BenchError(f"expected numbers of threads of 1 or more, got {min(counts)}.")
    if rounds is not None and rounds < 2:
        raise BenchError(f"expected at least 2 rounds, since percentiles need two timings, got {rounds}.")
    words = ["gammabeta", "bench", *(names or ()), "--threads", ",".join(map(str, counts))]
    words += ["--rounds", str(rounds)] if rounds else []
    words += ["--out", str(out)] if str(out) != OUT else []
    words += [] if compiled else ["--no-compile"]
    words += ["--quick"] if quick else []
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{out}: expected a folder to write to, got {error.strerror}.") from None
    return Plan(chosen, counts, rounds, compiled, quick, Path(out), shlex.join(words))


def _measure(subject: Subject, plan: Plan, warmed: str, console: Console) -> Path:
    """Measure a subject and write its file."""
    today = datetime.date.today().isoformat()
    path = plan.out / f"{subject.name}-{today}.md"
    partial = path.with_suffix(".partial.md")
    rows = subject.rows(plan.quick)
    results: list[Result] = []
    try:
        with progress_bar(console) as bar:
            running = bar.add_task(subject.name, total=len(rows) * len(plan.threads))
            for threads in plan.threads:
                torch.set_num_threads(threads)
                with compiling(threads):
                    for row in rows:
                        bar.update(running, description=f"{threads} thread{'s' * (threads > 1)}  {row.name}")
                        results.append(contest(row, threads, plan.rounds, plan.compiled))
                        write(partial, page(subject, plan, results, warmed, len(rows) * len(plan.threads)))
                        bar.advance(running)
    except KeyboardInterrupt:
        if not results:
            raise Interrupted(f"Interrupted in the first row of {subject.name}: nothing was measured.") from None
        show(subject, results, console)
        raise Interrupted(f"Interrupted: {len(results)} rows of {subject.name} are in {partial}.") from None
    write(path, page(subject, plan, results, warmed, len(results)))
    partial.unlink(missing_ok=True)
    show(subject, results, console)
    console.print(f"written to {escape(str(path))}", soft_wrap=True, highlight=False)
    return path
