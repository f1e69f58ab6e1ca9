"""The benchmarks: ours beside torch's and torch.compile's, as a table on the screen and a dated Markdown file.

A file is written after every row, under a name that marks it as partial. The finished file replaces it.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import gammabeta
from gammabeta.arguments import did_you_mean
from gammabeta.benchmarks.contest import COMPILED, COPY, OURS, TORCH, Result, Subject, contest
from gammabeta.benchmarks.ring import compiling
from gammabeta.benchmarks.subjects import SUBJECTS
from gammabeta.environment import environment, version_of

ROUNDS, QUICK_ROUNDS = 15, 5
OUT = "gammabeta-bench"
FIGURES = {"copies": 2, "µs": 1, "ms": 1}  # decimals
IN_SECONDS = {"µs": 1e6, "ms": 1e3}

METHOD = """\
All contestants run in one process and take turns; a different one begins each round. A figure is the median over the
rounds, with the 20th and 80th percentile in brackets. Preparations are not timed: for backward, the forward has run
before, and `torch.autograd.grad` is timed on its kept graph."""
METHOD_OF_COPIES = """\
The unit is the median of `y.copy_(x)` on tensors of the row's shape, dtype and layout, timed in the same turns: one
copy reads and writes one tensor. Tensors come from a ring that fills the last-level cache twice. Results are held for
one turn of the ring, so that no tensor is hot from the last call. *Traffic* is the least that must be read and
written, *floor* the same in copies. *Saved* is what forward keeps for backward, x included, ours / torch's."""


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
            if reason:
                console.print(f"[yellow]{subject.name} is skipped:[/] {escape(reason)}", highlight=False)
                continue
            written.append(_measure(subject, plan, str(warmed), console))
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
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    try:
        with progress as bar:
            running = bar.add_task(subject.name, total=len(rows) * len(plan.threads))
            for threads in plan.threads:
                torch.set_num_threads(threads)
                with compiling(threads):
                    for row in rows:
                        bar.update(running, description=f"{threads} thread{'s' * (threads > 1)}  {row.name}")
                        results.append(contest(row, threads, plan.rounds, plan.compiled))
                        _write(partial, page(subject, plan, results, warmed, len(rows) * len(plan.threads)))
                        bar.advance(running)
    except KeyboardInterrupt:
        if not results:
            raise Interrupted(f"Interrupted in the first row of {subject.name}: nothing was measured.") from None
        _show(subject, results, console)
        raise Interrupted(f"Interrupted: {len(results)} rows of {subject.name} are in {partial}.") from None
    _write(path, page(subject, plan, results, warmed, len(results)))
    partial.unlink(missing_ok=True)
    _show(subject, results, console)
    console.print(f"written to {escape(str(path))}", soft_wrap=True, highlight=False)
    return path


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path}: expected a file to write to, got {error.strerror}.") from None


def _show(subject: Subject, results: Sequence[Result], console: Console) -> None:
    """Print the medians; the file has the rest."""
    for threads in dict.fromkeys(result.threads for result in results):
        table = Table(title=f"{subject.name}, {_threads(threads)}: medians {_unit(subject)}")
        ours, theirs = subject.name_of(OURS), subject.name_of(TORCH)
        for i, head in enumerate(("operation", "x", ours, "at most", theirs, COMPILED, f"/ {theirs}")):
            table.add_column(head, justify="right" if i > 1 else "left")
        for result in results:
            if result.threads == threads:
                row = result.row
                x = f"{row.shape} {_name(row.dtype)}" + ("" if row.layout == "contiguous" else f" {row.layout}")
                mine, torchs, compiled = (_median(subject, result, name) for name in (OURS, TORCH, COMPILED))
                cells = (row.operation, x, mine, _limit(result), torchs, compiled, f"{result.ratio():.2f}")
                table.add_row(
                    *(escape(cell) for cell in cells), style="yellow" if result.within_limit() is False else ""
                )
        console.print(table)
    behind, broken = _as_fast(subject, results), sum(result.within_limit() is False for result in results)
    console.print(
        f"{broken} of {len(results)} rows over their limit; another as fast or faster {len(behind)} times",
        highlight=False,
    )


def page(subject: Subject, plan: Plan, results: Sequence[Result], warmed: str, expected: int) -> str:
    """Return the page of a subject: how it was measured, a table per number of threads, where another is as fast.

    Args:
        subject: what was measured.
        plan: how it was measured.
        results: those of the finished rows, at least one.
        warmed: what was done to the allocator, in words.
        expected: the final number of results; with fewer the page is marked as partial.
    """
    where = environment()
    kernels = "; ".join(f"{name}: {value}" for name, value in where["kernels"])
    processor = ", ".join(f"{name} {value}" for name, value in where["processor"])
    timm = version_of("timm")
    versions = [
        f"gammabeta {gammabeta.__version__}",
        f"torch {torch.__version__}",
        f"Python {platform.python_version()}",
    ]
    partial = len(results) < expected
    lines = [
        f"# {subject.title}",
        "",
        *(
            [f"**Partial: {len(results)} of {expected} rows.** The run was interrupted or is still going on.", ""]
            if partial
            else []
        ),
        f"{datetime.date.today().isoformat()} · `{plan.command}`, {plan.rounds} rounds",
        "",
        f"- Versions: {', '.join(versions + ([f'timm {timm}'] if subject.name == 'training_step' and timm else []))}",
        f"- Machine: {_processor()}; {processor}",
        f"- Kernels: {kernels}",
        f"- Allocator: {warmed}",
        "",
        subject.text,
        "",
        METHOD + ("\n\n" + METHOD_OF_COPIES if subject.unit == "copies" else ""),
    ]
    for threads in dict.fromkeys(result.threads for result in results):
        heads = _heads(subject)
        lines += [
            "",
            f"## {_threads(threads).capitalize()}: {_unit(subject)}",
            "",
            f"| {' | '.join(heads)} |",
            f"|{'---|' * 3}{'---:|' * (len(heads) - 3)}",
            *(f"| {' | '.join(_cells(subject, result))} |" for result in results if result.threads == threads),
        ]
    broken = [result for result in results if result.within_limit() is False]
    lines += ["", "## Over the limit", ""]
    lines += [f"- {_label(result)}: {_figure(subject, result, OURS)}, at most {_limit(result)}" for result in broken]
    lines += [] if broken else ["None."]
    lines += ["", "## Where another is as fast or faster", ""]
    behind = _as_fast(subject, results)
    lines += [f"- {line}" for line in behind] or ["Nowhere."]
    refused = [
        f"- {_label(result)}, {name}: {why}" for result in results for name, why in sorted(result.refused.items())
    ]
    if refused:
        lines += ["", "## Did not run", "", *refused]
    return "\n".join(lines) + "\n"


def _heads(subject: Subject) -> list[str]:
    heads = ["operation", "shape", "dtype, layout"]
    if subject.unit == "copies":
        heads += ["traffic, MiB", "saved, MiB", "copy, ms", "floor"]
    ours, theirs = subject.name_of(OURS), subject.name_of(TORCH)
    return [*heads, "at most", ours, theirs, COMPILED, *subject.others, f"{ours} / {theirs}", "limit kept"]


def _cells(subject: Subject, result: Result) -> list[str]:
    row = result.row
    cells = [row.operation, str(row.shape), f"{_name(row.dtype)}, {row.layout}"]
    if subject.unit == "copies":
        traffic = "" if row.floor is None else f"{2 * row.floor * row.tensor_bytes / 2**20:.1f}"
        saved = " / ".join(f"{result.saved[name] / 2**20:.1f}" for name in (OURS, TORCH) if name in result.saved)
        floor = "" if row.floor is None else f"{row.floor:g}"
        cells += [traffic, saved, f"{1e3 * result.seconds[COPY][1]:.2f}", floor]
    kept = {True: "yes", False: "**no**", None: ""}[result.within_limit()]
    figures = [_figure(subject, result, name) for name in (OURS, TORCH, COMPILED, *subject.others)]
    return [*cells, _limit(result), *figures, f"{result.ratio():.2f}", kept]


def _figure(subject: Subject, result: Result, name: str) -> str:
    """Format the median and, in brackets, the 20th and 80th percentile, in the subject's unit."""
    if name not in result.seconds:
        return _median(subject, result, name)
    low, _, high = _in_unit(subject, result, name)
    return f"{_median(subject, result, name)} ({low:.{FIGURES[subject.unit]}f} – {high:.{FIGURES[subject.unit]}f})"


def _median(subject: Subject, result: Result, name: str) -> str:
    if name not in result.seconds:
        return "did not run" if name in result.refused else ""
    return f"{_in_unit(subject, result, name)[1]:.{FIGURES[subject.unit]}f}"


def _in_unit(subject: Subject, result: Result, name: str) -> tuple[float, float, float]:
    """Return (p20, p50, p80) in the subject's unit."""
    if subject.unit == "copies":
        return result.copies(name)
    low, middle, high = (IN_SECONDS[subject.unit] * second for second in result.seconds[name])
    return low, middle, high


def _limit(result: Result) -> str:
    row = result.row
    if row.at_most is not None:
        return f"{row.at_most:g}"
    return "" if row.at_most_of_torch is None else f"{row.at_most_of_torch:.2f} of torch"


def _as_fast(subject: Subject, results: Sequence[Result]) -> list[str]:
    return [
        f"{_label(result)}: {_figure(subject, result, OURS)}; "
        f"{subject.name_of(name)} {_figure(subject, result, name)}: {how}"
        for result in results
        for name, how in result.at_least_as_fast().items()
    ]


def _label(result: Result) -> str:
    return f"{result.row.name}, {_threads(result.threads)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _threads(threads: int) -> str:
    return f"{threads} thread" + ("s" if threads > 1 else "")


def _unit(subject: Subject) -> str:
    return "in copies of x" if subject.unit == "copies" else f"in {subject.unit}"


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
