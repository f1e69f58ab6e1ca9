"""Whether results hold what a report needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gammabeta.pages.verdicts import VERDICTS

SCHEMA = 2


class ReportError(ValueError):
    """Results from which no report can be drawn. The message is one sentence for the person who ran the command."""


def check(results: Any) -> None:
    """Raise a `ReportError` that names the place where ``results`` are not what a report needs."""
    if not isinstance(results, dict):
        raise ReportError(f"results: expected an object, got {type(results).__name__}.")
    if results.get("schema") != SCHEMA:
        raise ReportError(
            f"results: expected schema {SCHEMA}, got {results.get('schema')!r}: "
            "draw the report with the gammabeta that ran the study, or run the study again."
        )
    if not isinstance(results.get("claims"), list):
        raise ReportError("results: expected a list under 'claims', got " + type(results.get("claims")).__name__ + ".")
    for where in _not_finite(results, "results"):
        raise ReportError(f"{where}: expected a finite number or null, got NaN or an infinity.")
    for one in results.get("recommendations") or []:
        _require(one, ("headline",), "a recommendation")
        if one.get("picture"):
            _require(one.get("table"), ("columns", "rows"), "a recommendation, its table")
            _check_picture(one["picture"], "a recommendation")
    for i, claim in enumerate(results["claims"]):
        if not isinstance(claim, dict) or not isinstance(claim.get("name"), str):
            raise ReportError(f"results.claims[{i}]: expected an object with a name.")
        where = f"claim {claim['name']}"
        if claim.get("verdict") not in VERDICTS:
            raise ReportError(
                f"{where}: expected a verdict out of {', '.join(VERDICTS)}, got {claim.get('verdict')!r}."
            )
        for effect in claim.get("effects") or []:
            _require(effect, ("name", "value"), f"{where}, an effect")
        for table in claim.get("tables") or []:
            _require(table, ("columns", "rows"), f"{where}, a table")
        for picture in claim.get("pictures") or []:
            _check_picture(picture, where)


def _require(part: Any, keys: tuple[str, ...], where: str) -> None:
    for key in keys:
        if not isinstance(part, dict) or key not in part:
            raise ReportError(f"{where}: expected an object with {key!r}.")


def _check_picture(picture: Any, where: str) -> None:
    _require(picture, ("kind",), f"{where}, a picture")
    where = f"{where}, picture {picture.get('title') or picture['kind']!r}"
    if picture["kind"] == "heatmap":
        heat = picture.get("heat")
        _require(heat, ("x", "y", "z"), f"{where}, heat")
        for name in ("z", "text"):
            rows = heat.get(name)
            if rows and (len(rows) != len(heat["y"]) or any(len(row) != len(heat["x"]) for row in rows)):
                raise ReportError(
                    f"{where}: expected {name} of {len(heat['y'])} rows of {len(heat['x'])}, "
                    "as many as y and x have labels."
                )
    elif picture["kind"] in ("line", "bar"):
        _require(picture, ("series",), where)
        for series in picture["series"]:
            _require(series, ("name", "x", "y"), f"{where}, a series")
            for key in ("y", "low", "high"):
                if series.get(key) is not None and len(series[key]) != len(series["x"]):
                    raise ReportError(
                        f"{where}, series {series['name']!r}: expected {len(series['x'])} values in {key}, "
                        f"as many as in x, got {len(series[key])}."
                    )
    else:
        raise ReportError(f"{where}: expected the kind line, bar or heatmap, got {picture['kind']!r}.")


def _not_finite(value: Any, where: str) -> Iterator[str]:
    """Yield the places of NaN and infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _not_finite(item, f"{where}[{i}]")
