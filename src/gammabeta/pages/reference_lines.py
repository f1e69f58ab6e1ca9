"""What a picture is read against: lines at single values, and the margin as a band."""

from __future__ import annotations

from collections import Counter

from gammabeta.pages.axes import Json, escape

MARGIN = "margin"  # the label of lines that bound it


def reference(lines: list[Json]) -> list[Json]:
    """Return the shapes of reference lines: two margins on one axis as a band between them, others as lines."""
    bounds = Counter(line.get("axis") for line in lines if line.get("label") == MARGIN)
    bands = [axis for axis, count in bounds.items() if count == 2]
    shapes = [band([line["value"] for line in _margins(lines, axis)], axis or "y") for axis in bands]
    return shapes + [_line(line) for line in lines if line.get("label") != MARGIN or line.get("axis") not in bands]


def _margins(lines: list[Json], axis: str | None) -> list[Json]:
    return [line for line in lines if line.get("label") == MARGIN and line.get("axis") == axis]


def band(bounds: list[float], axis: str) -> Json:
    """Return the shape of the margin, across the whole picture, behind everything else."""
    other = "x" if axis == "y" else "y"
    return {
        "type": "rect",
        "layer": "below",
        f"{axis}0": min(bounds),
        f"{axis}1": max(bounds),
        f"{axis}ref": axis,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": "paper",
        "fillcolor": "@zone",
        "line": {"width": 0},
        "label": _label(MARGIN, axis) | {"textposition": "top right", "xanchor": "right", "yanchor": "top"},
    }


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
        "label": _label(line.get("label") or "", axis),
    }


def _label(text: str, axis: str) -> Json:
    return {
        "text": escape(text),
        "textposition": "end",
        "textangle": 0,
        "xanchor": "right" if axis == "y" else "left",
        "yanchor": "bottom" if axis == "y" else "top",
        "font": {"color": "@muted", "size": 11},
        "padding": 3,
    }
