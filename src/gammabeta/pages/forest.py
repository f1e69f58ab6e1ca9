"""Effects with their intervals one below another, as in a forest plot, with the margin as a band.

The value of no effect is a line, and the sides are named where the picture says which of them is better.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from gammabeta.pages.arms import MARKERS, arm_of
from gammabeta.pages.axes import Json, axis, axis_title, escape, number, points, sides
from gammabeta.pages.reference_lines import MARGIN, band

_ROW, _LINE = 30, 15  # pixels of a row, and of each further line of its label
_WIDEST_LABEL, _WIDEST_TITLE = 34, 44  # characters of a line


def is_forest(picture: Json) -> bool:
    """Whether a picture shows effects: one series of bars that have intervals."""
    series = picture.get("series") or []
    return picture["kind"] == "bar" and len(series) == 1 and bool(series[0].get("low"))


def forest(picture: Json) -> Json:
    """Return the plotly figure."""
    (series,) = picture["series"]
    labels = [escape(number(x), _WIDEST_LABEL) for x in series["x"]]
    rows = list(range(len(labels)))
    margins = [line["value"] for line in picture.get("lines") or [] if line.get("label") == MARGIN]
    logarithmic = bool((picture.get("y") or {}).get("log"))
    nothing = 1.0 if logarithmic else 0.0
    values = axis(picture, "y")
    values["title"] = {"text": escape(axis_title(picture.get("y") or {}), _WIDEST_TITLE), "standoff": 6}
    values["range"] = _range(series, [*margins, nothing], logarithmic)
    shapes = [_null(nothing), *_unbounded(series)]
    if len(margins) == 2:
        # Its name stands above the picture, where no effect is.
        named = {"textposition": "top center", "xanchor": "center", "yanchor": "bottom"}
        margin = band(margins, "x")
        shapes.insert(0, margin | {"label": margin["label"] | named})
    names = {
        "tickmode": "array",
        "tickvals": rows,
        "ticktext": labels,
        "range": [len(rows) - 0.5, -0.5],
        "automargin": True,
        "showgrid": False,
    }
    lines = sum(label.count("<br>") for label in labels)
    height, paper = 120 + _ROW * len(rows) + _LINE * lines, 85 + 18 * len(rows) + 8 * lines
    layout = {"xaxis": values, "yaxis": names, "shapes": shapes, "showlegend": False, "annotations": _sides(picture)}
    layout["margin"] = {"l": 10, "r": 14, "t": 40, "b": 10}  # above: the margin's name, and the sides'

    return {"data": [_trace(picture, series, rows)], "layout": layout, "height": height, "paper": paper}


def _trace(picture: Json, series: Json, rows: list[int]) -> Json:
    """Return the trace of the effects; where each is of another arm, it has the arm's colour and marker."""
    arms = [arm_of(number(x)) for x in series["x"]]
    colour: Any = "@other1"
    symbol: Any = "circle"
    if all(arms) and len(set(arms)) == len(arms):
        colour, symbol = [f"@{arm}" for arm in arms], [MARKERS[arm] for arm in arms if arm]
    bounds = list(zip(series["y"], series["low"], series["high"], strict=True))
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(series["name"], 42),
        "x": series["y"],
        "y": rows,
        "marker": {"color": colour, "symbol": symbol, "size": 10},
        "error_x": {
            "type": "data",
            "array": [None if y is None or high is None else max(0.0, high - y) for y, _, high in bounds],
            "arrayminus": [None if y is None or low is None else max(0.0, y - low) for y, low, _ in bounds],
            "color": "@text",
            "thickness": 1.5,
            "width": 4,
        },
        "customdata": points(series, picture),
        "hovertemplate": "%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
    }


def _range(series: Json, others: list[float], logarithmic: bool) -> list[float] | None:
    """Return the axis' range, on a logarithmic axis in decades: around all values, or without intervals far too wide.

    An interval more than five times as wide as the middle one runs off the picture where it would press the others
    together; the numbers below the picture have its ends.
    """

    def place(value: float | None) -> float | None:
        if value is None or (logarithmic and value <= 0):
            return None
        return math.log10(value) if logarithmic else value

    triples = [tuple(map(place, triple)) for triple in zip(series["y"], series["low"], series["high"], strict=True)]
    widths = [high - low for _, low, high in triples if low is not None and high is not None]
    widest = 5 * median(widths) if widths else 0.0
    fitting = [
        (value, low, high) if low is not None and high is not None and high - low <= widest else (value,)
        for value, low, high in triples
    ]
    every, core = (
        [v for one in some for v in (*one, *map(place, others)) if v is not None] for some in (triples, fitting)
    )
    if not every or max(every) == min(every):
        return None
    if max(every) - min(every) > 2.5 * (max(core) - min(core)) > 0:
        every = core
    room = 0.06 * (max(every) - min(every))
    return [min(every) - room, max(every) + room]


def _null(value: float) -> Json:
    across = {"x0": value, "x1": value, "xref": "x", "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **across, "line": {"color": "@line", "width": 1}}


def _unbounded(series: Json) -> list[Json]:
    """Return a dotted line across the whole width for each effect whose interval has no ends."""
    return [
        {
            "type": "line",
            **{"x0": 0, "x1": 1, "xref": "paper", "y0": row, "y1": row, "yref": "y"},
            "line": {"color": "@muted", "width": 1, "dash": "dot"},
        }
        for row, (low, high) in enumerate(zip(series["low"], series["high"], strict=True))
        if low is None and high is None and series["y"][row] is not None
    ]


def _sides(picture: Json) -> list[Json]:
    """Name the sides above the picture, as far as it says what they mean."""
    lower, upper = sides(picture)
    shared = {"xref": "paper", "yref": "paper", "y": 1, "yanchor": "bottom", "yshift": 14, "showarrow": False}
    named = ((lower, 0, "left", f"← {lower}"), (upper, 1, "right", f"{upper} →"))
    return [
        {**shared, "x": x, "xanchor": anchor, "text": f"<b>{escape(text)}</b>", "font": {"color": "@muted", "size": 12}}
        for meaning, x, anchor, text in named
        if meaning
    ]
