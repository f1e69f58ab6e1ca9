"""A picture of effects with their intervals: inline SVG in an HTML table, in the page's colours, light or dark."""

import html
from itertools import groupby
from typing import Any

WIDTH, HEIGHT, EDGE = 240, 22, 8


def forest(effects: list[dict[str, Any]]) -> str:
    """Return the picture: a table for the effects of each unit, which share an axis."""
    # Studies that were kept before units were have none.
    drawn = [effect for effect in effects if "unit" in effect and None not in (effect["low"], effect["high"])]
    return "\n".join(
        table(unit, list(rows))
        for unit, rows in groupby(sorted(drawn, key=lambda row: str(row["unit"])), lambda row: row["unit"])
    )


def table(unit: str, effects: list[dict[str, Any]]) -> str:
    """Return the table of the effects with one unit."""
    ends = [effect[key] for effect in effects for key in ("low", "high", "value", "null") if effect[key] is not None]
    low, high = min(ends), max(ends)
    rows = [row(effect, low, high) for effect in effects]
    head = (
        f"<tr><th>effect</th><th>{number(low)} to {number(high)} {html.escape(unit)}</th><th>value [interval]</th></tr>"
    )
    return (
        f'<div class="forest"><table class="docutils">\n<thead>{head}</thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>\n"
    )


def row(effect: dict[str, Any], low: float, high: float) -> str:
    """Return an effect's row: its name, its interval beside the null, its numbers."""

    def x(value: float) -> float:
        return round(EDGE + (WIDTH - 2 * EDGE) * ((value - low) / (high - low) if high > low else 0.5), 1)

    name, verdict = html.escape(effect["name"]), html.escape(effect["verdict"] or "")
    middle = HEIGHT / 2
    marks = [
        f'<line x1="{x(effect["low"])}" x2="{x(effect["high"])}" y1="{middle}" y2="{middle}" class="interval"/>',
        f'<circle cx="{x(effect["value"])}" cy="{middle}" r="4" class="value"/>',
    ]
    if effect["null"] is not None:
        marks.insert(0, f'<line x1="{x(effect["null"])}" x2="{x(effect["null"])}" y1="0" y2="{HEIGHT}" class="null"/>')
    interval = f"[{number(effect['low'])}, {number(effect['high'])}]"
    label = html.escape(f"{effect['name']}: {number(effect['value'])} {interval}", quote=True)
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(marks)}</svg>'
    said = f"{number(effect['value'])} {interval}" + (f"<br><em>{verdict}</em>" if verdict else "")
    return f"<tr><td>{name}</td><td>{picture}</td><td>{said}</td></tr>"


def number(value: float) -> str:
    """Return a number with three digits, and a minus that is as wide as a plus."""
    return f"{value:.3g}".replace("-", "−")
