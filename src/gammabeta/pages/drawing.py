"""A picture of results.json as the page shows it: its figure, its numbers, and words for those who cannot see it."""

from __future__ import annotations

import re

from gammabeta.pages import picture as pictures
from gammabeta.pages.axes import Json, axis_title
from gammabeta.pages.forest import is_forest


def drawn(picture: Json, replicates: str = "") -> Json:
    """Return a picture as the template needs it, with its replicates where the caption does not say how many."""
    counted = re.search(r"\b(?:\d+|one) (?:seed|replicate)s?\b", str(picture.get("caption") or ""), re.IGNORECASE)
    return {
        "replicates": "" if counted else replicates,
        "title": picture.get("title") or "",
        "caption": picture.get("caption") or "",
        "forest": is_forest(picture),
        "figure": pictures.figure(picture),
        "missing": pictures.missing(picture),
        "numbers": pictures.numbers(picture),
        "spoken": _description(picture),
    }


def _description(picture: Json) -> str:
    """Return what a screen reader says about a picture."""
    axes = [axis_title(picture.get(which) or {}) for which in ("y", "x")]
    what = " against ".join(axis for axis in axes if axis)
    names = ", ".join(str(series["name"]) for series in picture.get("series") or [])
    kind = {"line": "Line chart", "bar": "Bar chart", "heatmap": "Heatmap"}[picture["kind"]]
    return ". ".join(part for part in (f"{kind}: {picture.get('title') or what}", what, names) if part)
