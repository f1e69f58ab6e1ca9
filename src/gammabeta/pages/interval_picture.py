"""An effect as a small picture: its interval, its margin, and the value of no effect."""

from __future__ import annotations

import html
import math
from typing import Any

from gammabeta.pages.axes import Json, number


def interval_svg(effect: Json) -> Any:
    """Draw an effect: the margin as a zone, null as a line, the 95 % interval as a bar, the value as a dot."""
    from markupsafe import Markup

    value, low, high = effect["value"], effect.get("low"), effect.get("high")
    margin, null = [m for m in effect.get("margin") or [] if m is not None], effect.get("null")
    if value is None:
        return ""
    marks = [v for v in (value, low, high, null, *margin) if v is not None]
    # Ratios are drawn on a logarithmic axis: twice and half are equally far from 1.
    logarithmic = null == 1 and min(marks) > 0
    place = math.log if logarithmic else float
    first, last = min(map(place, marks)), max(map(place, marks))
    if first == last:
        first, last = first - 1, last + 1
    width, height, edge = 220, 34, 16

    def x(v: float | None, otherwise: float) -> float:
        return otherwise if v is None else edge + (width - 2 * edge) * (place(v) - first) / (last - first)

    parts = []
    if margin and max(margin) > min(margin):
        left, right = x(min(margin), edge), x(max(margin), width - edge)
        parts.append(f'<rect class="zone" x="{left:.1f}" y="3" width="{right - left:.1f}" height="18" rx="2"/>')
    if null is not None:
        parts.append(f'<line class="null" x1="{x(null, 0):.1f}" x2="{x(null, 0):.1f}" y1="1" y2="23"/>')
    # A single seed gives no bounds: its interval runs off both edges.
    left, right = x(low, 0), x(high, width)
    parts.append(f'<line class="interval" x1="{left:.1f}" x2="{right:.1f}" y1="12" y2="12"/>')
    parts.append(f'<circle class="value" cx="{x(value, 0):.1f}" cy="12" r="4.5"/>')
    placed: list[float] = []
    for tick in dict.fromkeys([*([] if null is None else [null]), *margin]):
        at = x(tick, 0)
        if all(abs(at - other) > 30 for other in placed):
            placed.append(at)
            parts.append(f'<text x="{at:.1f}" y="33">{html.escape(number(tick))}</text>')
    label = f"{number(value)}, interval {number(low)} to {number(high)}"
    if margin:
        label += f", margin {' to '.join(number(m) for m in margin)}"
    return Markup(
        f'<svg class="effect" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{html.escape(label)}"><title>{html.escape(label)}</title>{"".join(parts)}</svg>'
    )
