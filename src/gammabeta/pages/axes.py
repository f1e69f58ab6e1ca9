"""Axes of pictures: their titles, scales and ticks, and the texts on them."""

from __future__ import annotations

import html
import math
import re
import textwrap
from typing import Any

Json = dict[str, Any]


def number(value: Any, digits: int = 3) -> str:
    """Format a value for people.

    Floats have ``digits`` significant digits, with no exponent in the usual range; None is an en dash.
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value).replace("-", "−")
    if isinstance(value, float):
        if value == 0:
            return "0"
        if 1e-3 <= abs(value) < 1e5:
            text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
            text = text.rstrip("0").rstrip(".") if "." in text else text
        else:
            mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
            text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return text.replace("-", "−")
    return str(value)


# What an axis measures where less of it is better, and where more is; a difference has its own direction.
_LOWER = re.compile(r"(?:(?:test|training|validation) )?(?:error|loss|time)(?: rate)?(?:,.*| per step)?")
_HIGHER = re.compile(r"(?:(?:test|training|validation) )?accuracy(?:,.*)?")
_SIDE = re.compile(r"\b(above|below) [01]: ([^.;:]+)", re.IGNORECASE)
_LONGEST_SIDE = 36  # characters that fit beside a picture's middle on a phone


def sides(picture: Json) -> tuple[str, str]:
    """Return what values on the two sides of no effect mean, the lower side first, as far as the caption says it.

    Where one side is better, the other is worse.
    """
    found = _SIDE.search(str(picture.get("caption") or ""))
    if not found:
        return "", ""
    better = found[2].startswith("better")
    meaning = found[2] if len(found[2]) <= _LONGEST_SIDE else "better" if better else ""
    other = "worse" if better else ""
    return (other, meaning) if found[1].lower() == "above" else (meaning, other)


def axis_title(axis: Json) -> str:
    """Return an axis' label with its unit."""
    label, unit = axis.get("label") or "", axis.get("unit") or ""
    return f"{label} ({unit})" if label and unit else label or unit


def escape(text: Any, width: int | None = None) -> str:
    """Escape a text for plotly, which interprets some HTML; break it into lines of ``width`` characters."""
    lines = textwrap.wrap(str(text), width) if width else [str(text)]
    return "<br>".join(html.escape(line, quote=False) for line in lines or [""])


def _directed(axis: Json, which: str) -> str:
    """Return the title of an axis; that of the values says which direction is better, where that is plain."""
    title, label = axis_title(axis), str(axis.get("label") or "")
    if which == "y" and _LOWER.fullmatch(label):
        return f"{title}, lower is better"
    if which == "y" and _HIGHER.fullmatch(label):
        return f"{title}, higher is better"
    return title


def axis(picture: Json, which: str) -> Json:
    """Return the layout of a picture's axis, ``"x"`` or ``"y"``."""
    axis = picture.get(which) or {}
    values = [value for series in picture.get("series") or [] for value in series[which]]
    layout: Json = {
        "title": {"text": escape(_directed(axis, which), 60 if which == "x" else 40), "standoff": 10},
        "automargin": True,
    }
    if which == "x" and (picture["kind"] == "bar" or any(isinstance(value, str) for value in values)):
        return layout | {"type": "category", "showgrid": False}
    if axis.get("log"):
        placed = [value for value in values if isinstance(value, int | float) and value > 0]
        decades = math.log10(max(placed) / min(placed)) if placed else 0.0
        # 1, 2, 5, 10, … over a few decades, else whole decades.
        step: Json = {"dtick": "D2"} if decades < 2.5 else {"dtick": max(1, round(decades / 8))}
        layout |= {"type": "log", "tickformat": "~g", **step}
        ticks = sorted(set(placed))
        # A grid of few values (batch sizes, learning rates) gets its own values as ticks.
        if which == "x" and 1 < len(ticks) <= 8:
            layout |= {"tickmode": "array", "tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}
    return layout


def points(series: Json, picture: Json) -> list[list[str]]:
    """Return the hover label's lines for each point: x and y with labels and units, y with its interval.

    They are passed as data, so that plotly reads no user's text as a template.
    """
    before, after = [], []
    for which in ("x", "y"):
        axis = picture.get(which) or {}
        before.append(f"{escape(axis.get('label') or which)}: ")
        after.append(f" {escape(axis['unit'])}" if axis.get("unit") else "")
    low, high = series.get("low"), series.get("high")
    lines = []
    for i, (x, y) in enumerate(zip(series["x"], series["y"], strict=True)):
        text = number(y)
        if low and high and low[i] is not None and high[i] is not None:
            text += f" [{number(low[i])}, {number(high[i])}]"
        lines.append([before[0] + escape(number(x)) + after[0], before[1] + text + after[1]])
    return lines
