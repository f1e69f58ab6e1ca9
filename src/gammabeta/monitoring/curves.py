"""Curves of a history as small SVGs, with axes."""

from __future__ import annotations

import html
import math

from gammabeta.monitoring.watched import History

_WIDTH, _HEIGHT = 178, 64
# The area of the curve: between the labels of the values on the left and those of the steps below.
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 174, 6, 46


def curve(history: History, name: str, diverged: int | None = None) -> str:
    """Return the curve of one quantity; "–" if it was never measured.

    Args:
        history: the measurements.
        name: the quantity.
        diverged: the step at which training diverged, drawn as a line if it is within the curve.
    """
    steps = history.steps
    pairs = list(zip(steps, history.columns.get(name, []), strict=False))
    points = [(step, value) for step, value in pairs if math.isfinite(value)]
    if not points:
        return "–"
    low, high = min(v for _, v in points), max(v for _, v in points)
    first, last = steps[0], steps[-1]

    def x(step: int) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (step - first) / max(1, last - first)

    def y(value: float) -> float:
        middle = (_TOP + _BOTTOM) / 2
        return middle if high == low else _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)

    drawn = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    mark = f'<circle cx="{x(points[0][0]):.1f}" cy="{y(points[0][1]):.1f}" r="2"/>' if len(points) == 1 else ""
    if diverged is not None and first <= diverged <= last:
        at = f"{x(diverged):.1f}"
        mark += f'<line class="diverged" x1="{at}" x2="{at}" y1="{_TOP - 4}" y2="{_BOTTOM}"/>'
    label = (
        f"{name.replace('_', ' ')} from {points[0][1]:.3g} at step {points[0][0]} to {points[-1][1]:.3g} at step "
        f"{points[-1][0]}"
    )
    return (
        f'<svg class="curve" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(label)}">{_axes(low, high, first, last)}<polyline points="{drawn}"/>{mark}</svg>'
        f'<span class="last">{number(points[-1][1])}</span>'
    )


def number(value: float) -> str:
    """Format a value with three digits: 0.0217, 4260, 1.2e8."""
    if 1000 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):.0f}"
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def _axes(low: float, high: float, first: int, last: int) -> str:
    values = [(_TOP + 4, high), (_BOTTOM + 1, low)] if high != low else [((_TOP + _BOTTOM) / 2 + 3, low)]
    texts = "".join(f'<text x="{_LEFT - 5}" y="{y}" text-anchor="end">{number(value)}</text>' for y, value in values)
    texts += f'<text x="{_LEFT}" y="{_BOTTOM + 13}">{"step " if last == first else ""}{first}</text>'
    if last != first:
        texts += f'<text x="{_RIGHT}" y="{_BOTTOM + 13}" text-anchor="end">{last}</text>'
    frame = f"M{_LEFT} {_TOP - 4}V{_BOTTOM + 2}H{_RIGHT}"
    return f'<path class="axis" fill="none" d="{frame}"/>{texts}'
