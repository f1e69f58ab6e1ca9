"""The tables of `gammabeta verify`: by operation and dtype, and by backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from gammabeta.proof.report import again, missed, not_kept

if TYPE_CHECKING:
    from rich.console import Console

    from gammabeta.proof.outcome import Cell, Verification

SHOWN = 5
"""Failed cases that are printed of a backend."""


def show(found: Verification, console: Console) -> None:
    """Print what was found for people."""
    reasons: list[str] = []
    console.print(_by_operation(found, reasons))
    for number, reason in enumerate(reasons, 1):
        console.print(f"[dim][{number}] {escape(reason)}[/]", soft_wrap=True, highlight=False)
    console.print()
    console.print(_by_backend(found))
    for backend in found.backends:
        for failure in backend.failures[:SHOWN] if backend.judged else ():
            console.print(f"\n[red]{escape(failure['case'])}[/] on {failure['backend']}", highlight=False)
            console.print(escape(failure["message"]), soft_wrap=True, highlight=False)
            console.print(escape(again(failure)), soft_wrap=True, highlight=False, style="dim")
    console.print(f"\n{escape(summary(found))}", soft_wrap=True, highlight=False)


def summary(found: Verification) -> str:
    """Return the outcome in a line, and where the certificates are."""
    judged = [backend for backend in found.backends if backend.judged]
    failed = [backend.name for backend in judged if not backend.passed and backend.decides]
    incomplete = [backend.name for backend in judged if not backend.decides]
    parts = [f"failed on {', '.join(failed)}"] if failed else []
    parts += [f"incomplete on {', '.join(incomplete)}"] if incomplete else []
    verdict = ", ".join(parts) or "all within tolerance"
    line = f"{found.ran} in {found.seconds:.0f} s: {verdict}"
    kept = [f"certificate  {path}" for path in found.certificates.values()]
    return "\n".join([line, *kept, *map(not_kept, found.unwritten.items()), *missed(found.to_dict())])


def _by_operation(found: Verification, reasons: list[str]) -> Table:
    """Return a row for every operation and dtype: the largest error of all backends that are judged."""
    table = Table(box=None, pad_edge=False)
    for name in ("operation", "dtype", "cases", "largest error", "of", "why", "time", " "):
        table.add_column(name, justify="right" if name in ("cases", "time") else "left", no_wrap=True)
    by_place: dict[tuple[str, str], list[Cell]] = {}
    for backend in found.backends:
        for place, cell in backend.cells.items() if backend.judged else ():
            by_place.setdefault(place, []).append(cell)
    for (op, dtype), cells in by_place.items():
        worst = max(cells, key=lambda cell: cell.error)
        if worst.reason not in reasons:
            reasons.append(worst.reason)
        failed = sum(cell.failed for cell in cells)
        table.add_row(
            op, dtype, str(sum(cell.cases for cell in cells)), f"{worst.error:.1f} of {worst.allowed:.1f} ulp",
            worst.quantity, f"[dim]\\[{reasons.index(worst.reason) + 1}][/]",
            f"{sum(cell.seconds for cell in cells):.1f} s", f"[red]{failed} failed[/]" if failed else "[green]✓[/]",
        )  # fmt: skip
    return table


def _by_backend(found: Verification) -> Table:
    table = Table("backend", "on", "cases", "time", "verdict", box=None, pad_edge=False)
    for backend in found.backends:
        colour = "green" if backend.passed else "red" if backend.judged else "yellow"
        verdict = backend.verdict + (f": {backend.failed} of {backend.cases}" if backend.failed else "")
        table.add_row(
            backend.name, escape(backend.on), str(backend.cases), f"{backend.seconds:.1f} s", f"[{colour}]{verdict}[/]"
        )
    return table
