"""The page of a sweep: counts, the rows above their limit, then every row's ratio, norm by norm."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import torch

from gammabeta.activations import ACTIVATIONS
from gammabeta.benchmarks.contest import Subject
from gammabeta.benchmarks.page import head
from gammabeta.benchmarks.plan import Plan
from gammabeta.benchmarks.swept import GROUPS, INACCURATE, JUDGED, REPETITIONS, SMALL, Swept

METHOD = """\
Both contestants run in one process and take turns; the other one begins each round. A timing repeats calls for a
millisecond or longer, on up to four buffers in turn, and results are held for one turn. For backward, the forward has
run before, and `torch.autograd.grad` is timed on its kept graph. *Ratio* is the median of ours / torch over a
repetition's rounds, with the lower and upper quartile in brackets; below 1 is faster. A row that takes long has fewer
rounds, but at least five."""


def sweep_page(subject: Subject, plan: Plan, found: Sequence[Swept], warmed: str, partial: str | None) -> str:
    """Return the page.

    Args:
        subject: the sweep.
        plan: how it was measured.
        found: the rows that were measured or refused, at least one.
        warmed: what was done to the allocator, in words.
        partial: how much is there, in words; None for all.
    """
    timed = [each for each in found if each.times]
    lines = [*head(subject, plan, warmed, partial), "", METHOD, "", "## Counts", "", *_counts(timed)]
    titles = {
        JUDGED: "Above 1.05",
        SMALL: "Small calls above 1.3",
        INACCURATE: "Above 1.05 where torch's op is not accurate enough",
    }
    for group in GROUPS:
        lines += ["", f"## {titles[group]}", "", *_above([each for each in timed if each.row.group == group])]
    lines += ["", "## All rows", ""]
    lines += [
        "Ratios, with an activation in each column; *r* adds a residual first. Bold ones are above their limit; for "
        "those in italics torch's op is not accurate enough.",
    ]
    for threads in dict.fromkeys(each.threads for each in timed):
        of_these = [each for each in timed if each.threads == threads]
        for norm in dict.fromkeys(each.row.norm for each in of_these):
            lines += ["", f"### {norm}, {_threads(threads)}", "", *_ratios(e for e in of_these if e.row.norm == norm)]
    refused = [f"- {each.row.name}, {_threads(each.threads)}: {each.refused}" for each in found if each.refused]
    return "\n".join([*lines, *(["", "## Did not run", "", *refused] if refused else [])]) + "\n"


def sweep_summary(found: Sequence[Swept]) -> str:
    """Return the counts in one line, for the screen."""
    timed = [each for each in found if each.times]
    words = [
        f"{sum(each.above for each in timed if each.row.group == group)} of "
        f"{sum(each.row.group == group for each in timed)} rows above their limit ({group})"
        for group in GROUPS
    ]
    undecided = sum(each.open for each in timed)
    return "; ".join([*words, *([f"{undecided} undecided"] if undecided else [])])


def _counts(timed: Sequence[Swept]) -> list[str]:
    lines = [
        "| rows | number | above | undecided | as fast as torch or faster | median ratio | largest ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    kinds = [(group, [each for each in timed if each.row.group == group]) for group in GROUPS]
    kinds += [
        (f"{norm}, all", [e for e in timed if e.row.norm == norm]) for norm in dict.fromkeys(e.row.norm for e in timed)
    ]
    for name, rows in [*kinds, ("all", list(timed))]:
        if rows:
            ratios = [each.ratio for each in rows]
            numbers = len(rows), sum(e.above for e in rows), sum(e.open for e in rows), sum(r <= 1 for r in ratios)
            cells = [name, *map(str, numbers), f"{statistics.median(ratios):.2f}", f"{max(ratios):.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _above(rows: Iterable[Swept]) -> list[str]:
    above = sorted((each for each in rows if each.above), key=lambda each: -each.ratio)
    if not above:
        return ["None."]
    repetitions = " | ".join(f"ratio {i}" for i in range(1, REPETITIONS + 1))
    lines = [
        f"| operation | shape | dtype, layout | threads | {repetitions} | gammabeta, µs | torch, µs |",
        f"|{'---|' * 3}{'---:|' * (REPETITIONS + 3)}",
    ]
    for each in above:
        row, last = each.row, each.times[-1]
        ratios = [f"{t.middle:.2f} ({t.low:.2f} – {t.high:.2f})" for t in each.times]
        cells = [row.operation, f"{row.shape} {row.network}", f"{_name(row.dtype)}, {row.layout}", str(each.threads)]
        lines.append(f"| {' | '.join([*cells, *ratios, f'{1e6 * last.ours:.1f}', f'{1e6 * last.torch:.1f}'])} |")
    return lines


def _ratios(rows: Iterable[Swept]) -> list[str]:
    """Draw a table of ratios: a line for what all activations share."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for each in rows:
        row = each.row
        mark = "*" * ((row.group == INACCURATE) + 2 * each.above)
        way = ("backward" if row.backward else "forward") + ", r" * row.residual
        key = f"{row.shape} {row.network}", f"{_name(row.dtype)}, {row.layout}", way
        lines.setdefault(key, {})[row.activation] = f"{mark}{each.ratio:.2f}{mark}"
    names = [name for name in ACTIVATIONS if any(name in line for line in lines.values())]
    return [
        f"| shape | dtype, layout | | {' | '.join(names)} |",
        f"|{'---|' * 3}{'---:|' * len(names)}",
        *(f"| {' | '.join([*key, *(line.get(name, '') for name in names)])} |" for key, line in lines.items()),
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _threads(threads: int) -> str:
    return f"{threads} thread" + ("s" if threads > 1 else "")
