"""Pictures of a study as plotly figures: plain dictionaries, drawn in the page by plotly.js.

Colours are tokens, ``@batch`` or ``@batch/0.2`` (with opacity), which the page replaces by the colours of its light or
dark theme. So an arm has one colour and one marker in every picture. All text from users is escaped, since plotly
interprets some HTML in its texts.
"""

from __future__ import annotations

from typing import Any

from gammabeta.pages.arms import arm_of, styles
from gammabeta.pages.axes import Json, axis, axis_title, escape, number, points
from gammabeta.pages.forest import forest, is_forest
from gammabeta.pages.heatmap import heatmap
from gammabeta.pages.reference_lines import reference

HOVER = "<b>%{fullData.name}</b><br>%{customdata[0]}<br>%{customdata[1]}<extra></extra>"
BAND_FROM = 13  # points from which intervals are drawn as a band, not as an error bar each
# Groups, and characters of a label, above which bars are horizontal, with room for their labels.
MOST_UPRIGHT_BARS, LONGEST_UPRIGHT_LABEL = 8, 24


def figure(picture: Json) -> Json:
    """Return the plotly figure of a picture in results.json.

    It is ``{"data": [...], "layout": {...}, "height": px, "paper": px}``, with its heights on a screen and on paper.
    """
    kind = picture["kind"]
    if is_forest(picture):
        return forest(picture)
    layout: Json = {
        "xaxis": axis(picture, "x"),
        "yaxis": axis(picture, "y"),
        "shapes": reference(picture.get("lines") or []),
    }
    if kind == "heatmap":
        data = heatmap(picture["heat"], picture, layout)
        rows = len(picture["heat"]["y"])
        return {"data": data, "layout": layout, "height": 130 + 38 * rows, "paper": 110 + 24 * rows}
    series = picture["series"]
    layout["showlegend"] = len(series) > 1
    height = 380 + 20 * max(0, (len(series) - 4) // 2)
    many = max((len(one["x"]) for one in series), default=0) >= BAND_FROM
    data = []
    for one, style in zip(series, styles(series), strict=True):
        data += _bars(one, style, picture) if kind == "bar" else _curve(one, style, picture, many)
    if kind == "bar":
        layout |= {"barmode": "group", "bargap": 0.25, "bargroupgap": 0.08}
        labels = list(dict.fromkeys(number(x) for one in series for x in one["x"]))
        if len(labels) > MOST_UPRIGHT_BARS or any(len(label) > LONGEST_UPRIGHT_LABEL for label in labels):
            data, layout = _horizontal(data, layout)
            lines = sum(max(2, 1 + len(label) // 30, len(series)) for label in labels)
            height = 110 + 15 * lines + 20 * (len(series) > 1)
    return {"data": data, "layout": layout, "height": height, "paper": round(0.6 * height)}


def missing(picture: Json) -> str:
    """Say in words what a picture cannot show: missing values, and values that a logarithmic axis cannot place."""
    absent = unplaced = 0
    if picture["kind"] == "heatmap":
        absent = sum(value is None for row in picture["heat"]["z"] for value in row)
    for series in picture.get("series") or []:
        for x, y in zip(series["x"], series["y"], strict=True):
            if x is None or y is None:
                absent += 1
            elif any(
                isinstance(value, int | float) and value <= 0 and (picture.get(axis) or {}).get("log")
                for axis, value in (("x", x), ("y", y))
            ):
                unplaced += 1
    words = []
    if absent:
        words.append(f"{absent} {'value does' if absent == 1 else 'values do'} not exist: diverged, or not reached.")
    if unplaced:
        words.append(f"{unplaced} {'value is' if unplaced == 1 else 'values are'} 0 or less, off the log axis.")
    return " ".join(words)


def numbers(picture: Json) -> Json:
    """Return the picture as a table, for readers who cannot see it: ``{"columns": [...], "rows": [[...]]}``."""
    if picture["kind"] == "heatmap":
        heat = picture["heat"]
        text = heat.get("text") or []
        rows = []
        for i, (label, values) in enumerate(zip(heat["y"], heat["z"], strict=True)):
            rows.append([label, *((text[i][j] if text else "") or value for j, value in enumerate(values))])
        return {"columns": [axis_title(picture.get("y") or {}), *heat["x"]], "rows": rows}
    x_title, y_title = axis_title(picture.get("x") or {}), axis_title(picture.get("y") or {})
    rows = []
    for series in picture["series"]:
        low, high = series.get("low"), series.get("high")
        for i, (x, y) in enumerate(zip(series["x"], series["y"], strict=True)):
            rows.append([series["name"], x, y, low[i] if low else None, high[i] if high else None])
    columns = ["series", x_title or "x", y_title or "y", "low", "high"]
    if all(row[3] is None and row[4] is None for row in rows):
        columns, rows = columns[:3], [row[:3] for row in rows]
    return {"columns": columns, "rows": rows}


def _errors(series: Json, colour: str) -> Json:
    low, high = series.get("low"), series.get("high")
    if not low or not high:
        return {}
    up = [None if y is None or h is None else max(0.0, h - y) for y, h in zip(series["y"], high, strict=True)]
    down = [None if y is None or lo is None else max(0.0, y - lo) for y, lo in zip(series["y"], low, strict=True)]
    return {"error_y": {"type": "data", "array": up, "arrayminus": down, "color": colour, "thickness": 1.5, "width": 4}}


def _curve(series: Json, style: Json, picture: Json, many: bool) -> list[Json]:
    """Return the traces of a curve: with error bars, or with a band if there are many points."""
    colour = f"@{style['colour']}"
    name = escape(series["name"], 42)
    group = f"{style['colour']}{style['turn']}{series['name']}"
    # A point between two missing ones has no line to show it.
    marked = not many or None in series["y"] or len(series["x"]) < BAND_FROM
    trace: Json = {
        "type": "scatter",
        "mode": "lines+markers" if marked else "lines",
        "name": name,
        "legendgroup": group,
        "x": [escape(x) if isinstance(x, str) else x for x in series["x"]],
        "y": series["y"],
        "line": {"color": colour, "width": 2, "dash": style["dash"]},
        "marker": {"color": colour, "symbol": style["marker"], "size": 6 if many else 8},
        "customdata": points(series, picture),
        "hovertemplate": HOVER,
    }
    if not many:
        return [trace | _errors(series, colour)]
    band = _band(series)
    if not band:
        return [trace]
    shade: Json = {
        "type": "scatter",
        "mode": "lines",
        "fill": "toself",
        "fillcolor": f"{colour}/0.16",
        "line": {"width": 0, "color": f"{colour}/0"},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": group,
        **band,
    }
    return [shade, trace]


def _band(series: Json) -> Json:
    """Return the outline of the area between low and high, one closed piece for each run of existing points."""
    low, high = series.get("low"), series.get("high")
    if not low or not high:
        return {}
    xs: list[Any] = []
    ys: list[Any] = []
    piece: list[tuple[Any, float, float]] = []
    for x, lo, hi in [*zip(series["x"], low, high, strict=True), (None, None, None)]:
        if x is not None and lo is not None and hi is not None:
            piece.append((x, lo, hi))
        elif piece:
            gap = [None] if xs else []
            xs += [*gap, *(p[0] for p in piece), *(p[0] for p in reversed(piece))]
            ys += [*gap, *(p[2] for p in piece), *(p[1] for p in reversed(piece))]
            piece = []
    return {"x": xs, "y": ys} if xs else {}


def _horizontal(data: list[Json], layout: Json) -> tuple[list[Json], Json]:
    """Turn bars to run from left to right, the first on top: x and y change places."""
    turned = []
    for trace in data:
        one = trace | {"x": trace["y"], "y": trace["x"], "orientation": "h"}
        if "error_y" in one:
            one["error_x"] = one.pop("error_y")
        turned.append(one)
    swap = {"x0": "y0", "x1": "y1", "y0": "x0", "y1": "x1", "xref": "yref", "yref": "xref"}
    shapes = []
    for shape in layout["shapes"]:
        line = {
            swap.get(key, key): {"x": "y", "y": "x"}.get(value, value) if key in ("xref", "yref") else value
            for key, value in shape.items()
        }
        if shape["type"] == "rect":
            shapes.append(line)
            continue
        # The label goes to the side that has room.
        values = [value for trace in data for value in trace["y"] if value is not None]
        right = sum(value > shape["y0"] for value in values) >= sum(value < shape["y0"] for value in values)
        line["label"] = shape["label"] | {"xanchor": "left" if right else "right", "yanchor": "bottom"}
        shapes.append(line)
    names, values = layout["xaxis"], layout["yaxis"]
    names = {key: value for key, value in names.items() if key != "title"} | {"autorange": "reversed"}
    return turned, layout | {"xaxis": values, "yaxis": names, "shapes": shapes}


def _bars(series: Json, style: Json, picture: Json) -> list[Json]:
    """Return the trace of a series of bars."""
    colour: Any = f"@{style['colour']}"
    labels = [number(x) for x in series["x"]]
    if len(picture["series"]) == 1:
        # One series over the arms: each bar has its arm's colour.
        arms = [arm_of(label) for label in labels]
        if all(arms) and len(set(arms)) == len(arms):
            colour = [f"@{arm}" for arm in arms]
    marker: Json = {"color": colour, "line": {"width": 0}}
    if series.get("dash") or style["turn"]:
        marker["pattern"] = {"shape": "/", "fillmode": "overlay", "size": 6, "solidity": 0.25}
    return [
        {
            "type": "bar",
            "name": escape(series["name"], 42),
            "x": [escape(label, 30) for label in labels],
            "y": series["y"],
            "marker": marker,
            "customdata": points(series, picture),
            "hovertemplate": HOVER,
            **_errors(series, "@text"),
        }
    ]
