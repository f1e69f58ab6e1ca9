"""Heatmaps as plotly figures."""

from __future__ import annotations

import math
from typing import Any

from gammabeta.pages.axes import Json, axis, axis_title, escape, number

LOG_COLOUR_FROM = 1e3  # largest over smallest positive value from which colours are logarithmic


def heatmap(heat: Json, picture: Json, layout: Json) -> list[Json]:
    """Return the trace of a heatmap, and add its axes and annotations to the layout."""
    z, given = heat["z"], heat.get("text")
    texts = [
        [escape((given[i][j] if given else "") or number(value)) for j, value in enumerate(row)]
        for i, row in enumerate(z)
    ]
    values = [value for row in z for value in row if value is not None]
    positive = [value for value in values if value > 0]
    trace: Json = {"type": "heatmap", "z": z, "colorscale": [[0, "@cool0"], [0.5, "@cool1"], [1, "@cool2"]]}
    bar: Json = {"thickness": 12, "outlinewidth": 0, "title": {"text": escape(axis_title(picture.get("z") or {}), 14)}}
    if values and min(values) < 0 < max(values):
        trace |= {"colorscale": [[0, "@cool2"], [0.5, "@middle"], [1, "@warm2"]], "zmid": 0}
    elif positive and min(values) >= 0 and max(positive) / min(positive) > LOG_COLOUR_FROM:
        floor = min(positive) / (10 if min(values) == 0 else 1)
        trace["z"] = [[None if value is None else math.log10(max(value, floor)) for value in row] for row in z]
        first, last = math.ceil(math.log10(floor)), math.floor(math.log10(max(positive)))
        decades = list(range(first, last + 1, max(1, (last - first) // 4)))
        bar |= {"tickvals": decades, "ticktext": [number(10.0**decade) for decade in decades]}
    # Cells are at 0, 1, 2, …, so two labels may be the same.
    layout["xaxis"] = axis(picture, "x") | _labels(heat["x"]) | {"side": "top"}
    layout["yaxis"] = axis(picture, "y") | _labels(heat["y"]) | {"autorange": "reversed"}
    layout["plot_bgcolor"] = "@absent"
    # plotly writes no text where there is no value: an annotation says that it is missing.
    layout["annotations"] = [
        {"x": j, "y": i, "text": texts[i][j], "showarrow": False, "font": {"color": "@muted", "size": 12}}
        for i, row in enumerate(z)
        for j, value in enumerate(row)
        if value is None
    ]
    names = [escape((picture.get(which) or {}).get("label") or "") for which in ("y", "x")]
    names = [f"{name}: " if name else "" for name in names]
    trace |= {
        "x": list(range(len(heat["x"]))),
        "y": list(range(len(heat["y"]))),
        "text": texts,
        "texttemplate": "%{text}",
        "customdata": [
            [
                f"{names[0]}{escape(y)}<br>{names[1]}{escape(x)}<br><b>{texts[i][j]}</b>"
                + (f"<br>value {number(z[i][j])}" if given else "")
                for j, x in enumerate(heat["x"])
            ]
            for i, y in enumerate(heat["y"])
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
        "xgap": 2,
        "ygap": 2,
        "colorbar": bar,
        "showscale": len(set(values)) > 2,
    }
    return [trace]


def _labels(labels: list[Any]) -> Json:
    return {
        "tickmode": "array",
        "tickvals": list(range(len(labels))),
        "ticktext": [escape(number(label), 18) for label in labels],
        "showgrid": False,
        "zeroline": False,
    }
