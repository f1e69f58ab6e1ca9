"""Pictures of a study as plotly figures: plain dictionaries, drawn in the page by plotly.js.

Colours are tokens, ``@batch`` or ``@batch/0.2`` (with opacity), which the page replaces by the colours of its light or
dark theme. So an arm has one colour and one marker in every picture. All text from users is escaped, since plotly
interprets some HTML in its texts.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from typing import Any

Json = dict[str, Any]

# Markers make the colours safe for colour-blind readers: arms in similar colours still differ in shape.
MARKERS = {
    "none": "circle-open",
    "batch": "circle",
    "group": "square",
    "layer": "diamond",
    "instance": "triangle-up",
    "rms": "triangle-down",
    "ghost": "star",
    "renorm": "cross",
}
# The order matters: a ghost or renormalized batch norm is not plain "batch".
ARM_WORDS = (
    ("ghost", r"(?i:ghost)"),
    ("renorm", r"(?i:renorm)"),
    ("rms", r"(?i:rms)"),
    ("instance", r"(?i:instance)|\bIN\b"),
    ("group", r"(?i:group)|\bGN\b"),
    ("layer", r"(?i:layer[\s_-]?norm|\blayer\b)|\bLN\b"),
    ("batch", r"(?i:batch[\s_-]?norm|\bbatch\b)|\bBN\b"),
    ("none", r"(?i:\bnone\b|\bno norm|\bwithout\b|\bplain\b|unnormali[sz]ed)"),
)
OTHER_COLOURS = ("other1", "other2", "other3", "other4")
OTHER_MARKERS = ("pentagon", "hexagon", "x", "bowtie")
DASHES = ("solid", "dot", "dashdot", "longdash")

HOVER = "<b>%{fullData.name}</b><br>%{customdata[0]}<br>%{customdata[1]}<extra></extra>"
BAND_FROM = 13  # points from which intervals are drawn as a band, not as an error bar each
# Groups, and characters of a label, above which bars are horizontal, with room for their labels.
MOST_UPRIGHT_BARS, LONGEST_UPRIGHT_LABEL = 8, 24
LOG_COLOUR_FROM = 1e3  # largest over smallest positive value of a heatmap from which colours are logarithmic


def arm_of(name: str) -> str | None:
    """Return the arm that a series' name contains ("BatchNorm, tuned" is ``batch``); None if it contains none."""
    for arm, words in ARM_WORDS:
        if re.search(words, name):
            return arm
    return None


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


def axis_title(axis: Json) -> str:
    """Return an axis' label with its unit."""
    label, unit = axis.get("label") or "", axis.get("unit") or ""
    return f"{label} ({unit})" if label and unit else label or unit


def figure(picture: Json) -> Json:
    """Return the plotly figure of a picture in results.json: ``{"data": [...], "layout": {...}, "height": px}``."""
    kind = picture["kind"]
    layout: Json = {
        "xaxis": _axis(picture, "x"),
        "yaxis": _axis(picture, "y"),
        "shapes": _lines(picture.get("lines") or []),
    }
    if kind == "heatmap":
        data = _heatmap(picture["heat"], picture, layout)
        rows = len(picture["heat"]["y"])
        return {"data": data, "layout": layout, "height": 130 + 38 * rows}
    series = picture["series"]
    layout["showlegend"] = len(series) > 1
    height = 380 + 20 * max(0, (len(series) - 4) // 2)
    many = max((len(one["x"]) for one in series), default=0) >= BAND_FROM
    data = []
    for one, style in zip(series, _styles(series), strict=True):
        data += _bars(one, style, picture) if kind == "bar" else _curve(one, style, picture, many)
    if kind == "bar":
        layout |= {"barmode": "group", "bargap": 0.25, "bargroupgap": 0.08}
        labels = list(dict.fromkeys(number(x) for one in series for x in one["x"]))
        if len(labels) > MOST_UPRIGHT_BARS or any(len(label) > LONGEST_UPRIGHT_LABEL for label in labels):
            data, layout = _horizontal(data, layout)
            lines = sum(max(2, 1 + len(label) // 30, len(series)) for label in labels)
            height = 110 + 15 * lines + 20 * (len(series) > 1)
    return {"data": data, "layout": layout, "height": height}


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


def _escape(text: Any, width: int | None = None) -> str:
    lines = textwrap.wrap(str(text), width) if width else [str(text)]
    return "<br>".join(html.escape(line, quote=False) for line in lines or [""])


def _axis(picture: Json, which: str) -> Json:
    axis = picture.get(which) or {}
    values = [value for series in picture.get("series") or [] for value in series[which]]
    layout: Json = {
        "title": {"text": _escape(axis_title(axis), 60 if which == "x" else 40), "standoff": 10},
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


def _lines(lines: list[Json]) -> list[Json]:
    """Return reference lines; of several with the same label (the two ends of a margin) only the last shows it."""
    last = {(line.get("axis"), line.get("label")): i for i, line in enumerate(lines)}
    named = set(last.values())
    return [_line(line if i in named else line | {"label": ""}) for i, line in enumerate(lines)]


def _line(line: Json) -> Json:
    axis = line.get("axis", "y")
    other = "x" if axis == "y" else "y"
    return {
        "type": "line",
        f"{axis}0": line["value"],
        f"{axis}1": line["value"],
        f"{axis}ref": axis,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": "paper",
        "line": {"color": "@line", "width": 1.5, "dash": "dash"},
        "label": {
            "text": _escape(line.get("label") or ""),
            "textposition": "end",
            "textangle": 0,
            "xanchor": "right" if axis == "y" else "left",
            "yanchor": "bottom" if axis == "y" else "top",
            "font": {"color": "@muted", "size": 11},
            "padding": 3,
        },
    }


def _styles(series: list[Json]) -> list[Json]:
    """Return colour, marker and dash of every series: the arm's, with other dashes if an arm occurs several times."""
    styles: list[Json] = []
    others = 0
    seen: dict[str, int] = {}
    for one in series:
        arm = arm_of(one["name"])
        if arm:
            colour, marker = arm, MARKERS[arm]
        else:
            colour, marker = OTHER_COLOURS[others % 4], OTHER_MARKERS[others % 4]
            others += 1
        turn = seen.get(colour, 0)
        seen[colour] = turn + 1
        dash = "dash" if one.get("dash") else DASHES[turn % len(DASHES)]
        styles.append({"colour": colour, "marker": marker, "dash": dash, "turn": turn})
    return styles


def _points(series: Json, picture: Json) -> list[list[str]]:
    """Return the hover label's lines for each point: x and y with labels and units, y with its interval.

    They are passed as data, so that plotly reads no user's text as a template.
    """
    before, after = [], []
    for which in ("x", "y"):
        axis = picture.get(which) or {}
        before.append(f"{_escape(axis.get('label') or which)}: ")
        after.append(f" {_escape(axis['unit'])}" if axis.get("unit") else "")
    low, high = series.get("low"), series.get("high")
    lines = []
    for i, (x, y) in enumerate(zip(series["x"], series["y"], strict=True)):
        text = number(y)
        if low and high and low[i] is not None and high[i] is not None:
            text += f" [{number(low[i])}, {number(high[i])}]"
        lines.append([before[0] + _escape(number(x)) + after[0], before[1] + text + after[1]])
    return lines


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
    name = _escape(series["name"], 42)
    group = f"{style['colour']}{style['turn']}{series['name']}"
    # A point between two missing ones has no line to show it.
    marked = not many or None in series["y"] or len(series["x"]) < BAND_FROM
    trace: Json = {
        "type": "scatter",
        "mode": "lines+markers" if marked else "lines",
        "name": name,
        "legendgroup": group,
        "x": [_escape(x) if isinstance(x, str) else x for x in series["x"]],
        "y": series["y"],
        "line": {"color": colour, "width": 2, "dash": style["dash"]},
        "marker": {"color": colour, "symbol": style["marker"], "size": 6 if many else 8},
        "customdata": _points(series, picture),
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
            "name": _escape(series["name"], 42),
            "x": [_escape(label, 30) for label in labels],
            "y": series["y"],
            "marker": marker,
            "customdata": _points(series, picture),
            "hovertemplate": HOVER,
            **_errors(series, "@text"),
        }
    ]


def _heatmap(heat: Json, picture: Json, layout: Json) -> list[Json]:
    """Return the trace of a heatmap, and add its axes and annotations to the layout."""
    z, given = heat["z"], heat.get("text")
    texts = [
        [_escape((given[i][j] if given else "") or number(value)) for j, value in enumerate(row)]
        for i, row in enumerate(z)
    ]
    values = [value for row in z for value in row if value is not None]
    positive = [value for value in values if value > 0]
    trace: Json = {"type": "heatmap", "z": z, "colorscale": [[0, "@cool0"], [0.5, "@cool1"], [1, "@cool2"]]}
    bar: Json = {"thickness": 12, "outlinewidth": 0, "title": {"text": _escape(axis_title(picture.get("z") or {}), 14)}}
    if values and min(values) < 0 < max(values):
        trace |= {"colorscale": [[0, "@cool2"], [0.5, "@middle"], [1, "@warm2"]], "zmid": 0}
    elif positive and min(values) >= 0 and max(positive) / min(positive) > LOG_COLOUR_FROM:
        floor = min(positive) / (10 if min(values) == 0 else 1)
        trace["z"] = [[None if value is None else math.log10(max(value, floor)) for value in row] for row in z]
        first, last = math.ceil(math.log10(floor)), math.floor(math.log10(max(positive)))
        decades = list(range(first, last + 1, max(1, (last - first) // 4)))
        bar |= {"tickvals": decades, "ticktext": [number(10.0**decade) for decade in decades]}
    # Cells are at 0, 1, 2, …, so two labels may be the same.
    layout["xaxis"] = _axis(picture, "x") | _labels(heat["x"]) | {"side": "top"}
    layout["yaxis"] = _axis(picture, "y") | _labels(heat["y"]) | {"autorange": "reversed"}
    layout["plot_bgcolor"] = "@absent"
    # plotly writes no text where there is no value: an annotation says that it is missing.
    layout["annotations"] = [
        {"x": j, "y": i, "text": texts[i][j], "showarrow": False, "font": {"color": "@muted", "size": 12}}
        for i, row in enumerate(z)
        for j, value in enumerate(row)
        if value is None
    ]
    names = [_escape((picture.get(which) or {}).get("label") or "") for which in ("y", "x")]
    names = [f"{name}: " if name else "" for name in names]
    trace |= {
        "x": list(range(len(heat["x"]))),
        "y": list(range(len(heat["y"]))),
        "text": texts,
        "texttemplate": "%{text}",
        "customdata": [
            [
                f"{names[0]}{_escape(y)}<br>{names[1]}{_escape(x)}<br><b>{texts[i][j]}</b>"
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
        "ticktext": [_escape(number(label), 18) for label in labels],
        "showgrid": False,
        "zeroline": False,
    }
