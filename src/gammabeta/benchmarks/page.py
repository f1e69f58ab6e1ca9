"""The page of a subject, and its table on the screen."""

from __future__ import annotations

import contextlib
import datetime
import platform
import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import gammabeta
from gammabeta.benchmarks.contest import COMPILED, COPY, OURS, TORCH, Result, Subject
from gammabeta.benchmarks.plan import Plan
from gammabeta.environment import environment, version_of

FIGURES = {"copies": 2, "µs": 1, "ms": 1}  # decimals
IN_SECONDS = {"µs": 1e6, "ms": 1e3}

LIBRARIES = ("timm", "transformers")  # named with their version where a subject has imported them

METHOD = """\
All contestants run in one process and take turns; a different one begins each round. A figure is the median over the
rounds, with the 20th and 80th percentile in brackets. Preparations are not timed: for backward, the forward has run
before, and `torch.autograd.grad` is timed on its kept graph."""
METHOD_OF_COPIES = """\
The unit is the median of `y.copy_(x)` on tensors of the row's shape, dtype and layout, timed in the same turns: one
copy reads and writes one tensor. Tensors come from a ring that fills the last-level cache twice. Results are held for
one turn of the ring, so that no tensor is hot from the last call. *Traffic* is the least that must be read and
written, *floor* the same in copies. *Saved* is what forward keeps for backward, x included, ours / torch's."""


def page(subject: Subject, plan: Plan, results: Sequence[Result], warmed: str, expected: int) -> str:
    """Return the page of a subject: how it was measured, a table per number of threads, where another is as fast.

    Args:
        subject: what was measured.
        plan: how it was measured.
        results: those of the finished rows, at least one.
        warmed: what was done to the allocator, in words.
        expected: the final number of results; with fewer the page is marked as partial.
    """
    timed = [result for result in results if result.timed]
    partial = f"{len(results)} of {expected} rows" if len(results) < expected else None
    lines = head(subject, plan, warmed, partial)
    lines += ["", METHOD + ("\n\n" + METHOD_OF_COPIES if subject.unit == "copies" else "")]
    for threads in dict.fromkeys(result.threads for result in timed):
        heads = _heads(subject)
        lines += [
            "",
            f"## {_threads(threads).capitalize()}: {_unit(subject)}",
            "",
            f"| {' | '.join(heads)} |",
            f"|{'---|' * 3}{'---:|' * (len(heads) - 3)}",
            *(f"| {' | '.join(_cells(subject, result))} |" for result in timed if result.threads == threads),
        ]
    if subject.unit != "copies":
        lines += _kept(subject, timed)
    broken = [result for result in timed if result.within_limit() is False]
    lines += ["", "## Over the limit", ""]
    lines += [f"- {_label(result)}: {_figure(subject, result, OURS)}, at most {_limit(result)}" for result in broken]
    lines += [] if broken else ["None."]
    lines += ["", "## Where another is as fast or faster", ""]
    behind = _as_fast(subject, timed)
    lines += [f"- {line}" for line in behind] or ["Nowhere."]
    refused = [
        f"- {_label(result)}, {name}: {why}" for result in results for name, why in sorted(result.refused.items())
    ]
    if refused:
        lines += ["", "## Did not run", "", *refused]
    return "\n".join(lines) + "\n"


def head(subject: Subject, plan: Plan, warmed: str, partial: str | None) -> list[str]:
    """Return the lines that open a page: title, command, versions, machine, and the subject's text.

    `partial` says how much of the subject is there, None for all.
    """
    where = environment()
    kernels = "; ".join(f"{name}: {value}" for name, value in where["kernels"])
    processor = ", ".join(f"{name} {value}" for name, value in where["processor"])
    versions = [
        f"gammabeta {gammabeta.__version__}",
        f"torch {torch.__version__}",
        f"Python {platform.python_version()}",
        *(f"{library} {version_of(library)}" for library in LIBRARIES if library in sys.modules),
    ]
    marked = [f"**Partial: {partial}.** The run was interrupted or is still going on.", ""] if partial else []
    return [
        f"# {subject.title}",
        "",
        *marked,
        f"{datetime.date.today().isoformat()} · `{plan.command}`, {plan.rounds} rounds",
        "",
        f"- Versions: {', '.join(versions)}",
        f"- Machine: {_processor()}; {processor}",
        f"- Kernels: {kernels}",
        f"- Allocator: {warmed}",
        "",
        subject.text,
    ]


def _kept(subject: Subject, results: Sequence[Result]) -> list[str]:
    """Return the table of what each contestant keeps for backward, in MB and as a share of torch's; [] for nothing."""
    of_row = {result.row.name: result for result in results if result.saved}  # threads change nothing
    if not of_row:
        return []
    names = (OURS, TORCH, *subject.others)
    lines = [
        "",
        "## Kept for backward, in MB",
        "",
        "What a forward keeps, parameters and buffers aside; in brackets the share of what "
        f"{subject.name_of(TORCH)} keeps.",
        "",
        f"| operation | shape | dtype, layout | {' | '.join(map(subject.name_of, names))} |",
        f"|{'---|' * 3}{'---:|' * len(names)}",
    ]
    for result in of_row.values():
        row, of = result.row, result.saved
        figures = [f"{of[name] / 1e6:.1f}" if name in of else "" for name in names]
        shares = [f" ({of[name] / of[TORCH]:.2f})" if name in of and name != TORCH else "" for name in names]
        cells = map("".join, zip(figures, shares, strict=True))
        lines.append(f"| {row.operation} | {row.shape} | {_name(row.dtype)}, {row.layout} | {' | '.join(cells)} |")
    return lines


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
        if name not in subject.variants
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


def show(subject: Subject, results: Sequence[Result], console: Console) -> None:
    """Print the medians; the file has the rest."""
    timed = [result for result in results if result.timed]
    for threads in dict.fromkeys(result.threads for result in timed):
        table = Table(title=f"{subject.name}, {_threads(threads)}: medians {_unit(subject)}")
        ours, theirs = subject.name_of(OURS), subject.name_of(TORCH)
        for i, head in enumerate(("operation", "x", ours, "at most", theirs, COMPILED, f"/ {theirs}")):
            table.add_column(head, justify="right" if i > 1 else "left")
        for result in timed:
            if result.threads == threads:
                row = result.row
                x = f"{row.shape} {_name(row.dtype)}" + ("" if row.layout == "contiguous" else f" {row.layout}")
                mine, torchs, compiled = (_median(subject, result, name) for name in (OURS, TORCH, COMPILED))
                cells = (row.operation, x, mine, _limit(result), torchs, compiled, f"{result.ratio():.2f}")
                table.add_row(
                    *(escape(cell) for cell in cells), style="yellow" if result.within_limit() is False else ""
                )
        console.print(table)
    behind, broken = _as_fast(subject, timed), sum(result.within_limit() is False for result in timed)
    failed = f"; {len(results) - len(timed)} rows did not run" if len(timed) < len(results) else ""
    console.print(
        f"{broken} of {len(timed)} rows over their limit; another as fast or faster {len(behind)} times{failed}",
        highlight=False,
    )
