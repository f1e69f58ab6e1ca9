"""The report of a study: one HTML page that opens offline, with plotly.js, style and data inside."""

from __future__ import annotations

import base64
import datetime
import gzip
import html
import json
import math
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from gammabeta.pages import picture as pictures
from gammabeta.pages.atomic import write_atomically
from gammabeta.pages.picture import Json, number

SCHEMA = 2
VERDICTS = (
    "supported",
    "contradicted",
    "mixed",
    "equivalent",
    "reported",
    "inconclusive",
    "no room here",
    "does not apply",
    "failed",
    "interrupted",
)
SIGNS = {
    "supported": "✓",
    "contradicted": "✗",
    "mixed": "±",
    "equivalent": "≈",
    "inconclusive": "?",
    "no room here": "∅",
    "reported": "i",
    "does not apply": "–",
    "failed": "✕",
    "interrupted": "…",
}
MEANINGS = {
    "supported": "the whole 95 % interval lies where the claim puts it: beyond the margin in the claimed direction, "
    "or within the margins of a claimed value",
    "contradicted": "the whole interval lies beyond the margin on the other side",
    "mixed": "regimes are shown to differ: at least one supports or contradicts the claim, and another is shown to do "
    "otherwise",
    "equivalent": "the whole interval lies within the margins: no difference that anybody would care about",
    "inconclusive": "none of these; where a number of seeds is given that would settle it, gammabeta study CLAIM "
    "--seed 1 --seeds N --out ANOTHER runs that many fresh ones",
    "reported": "measured, without a verdict, which would rest on assumptions",
    "failed": "a trial raised three times, and the claim could not be measured",
    "does not apply": "the claim is about another kind of data",
    "no room here": "a control named beforehand says that the claim cannot show on this model and data",
    "interrupted": "the study was stopped before this claim was decided",
}
# What a claim shows without unfolding: more would make the page too long to read.
SHOWN = {"pictures": 2, "effects": 10}
LONGEST_LIST = 8  # longest list of a trial that the page shows in full; results.json has all values


class ReportError(ValueError):
    """Results from which no report can be drawn. The message is one sentence for the person who ran the command."""


def read_results(folder: Path | str) -> Json:
    """Read the results that a study left in ``folder``.

    Raises:
        ReportError: the folder holds no ``results.json``, or the file is not what a study writes.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise ReportError(f"{path}: no such file; name the folder to which `gammabeta study --out` wrote.")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: expected what a study writes, got a file that is not JSON ({error}).") from None
    check(results)
    return dict(results)


def write_report(results: Json, path: Path | str) -> Path:
    """Write ``results`` (the content of ``results.json``) as a self-contained HTML page.

    Args:
        results: what ``gammabeta.lab.study.study`` returns.
        path: the file to write; an existing file is replaced in one step.

    Returns:
        The path.

    Raises:
        ReportError: ``results`` lack something that a report needs, or hold NaN or infinities.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    check(results)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "prose": prose, "embed": embed, "duration": duration}
    # A column of numbers is right-aligned, and so is its heading.
    environment.tests["worded"] = lambda cell: isinstance(cell, str | bool)
    template = environment.from_string(_resource("report.html.jinja"))
    page = template.render(
        results=results,
        task=results.get("task") or {},
        recommendations=[_recommendation(one) for one in results.get("recommendations") or []],
        claims=[_claim(claim, results.get("trials") or {}) for claim in results["claims"]],
        titles={claim["name"]: claim.get("title") or claim["name"] for claim in results["claims"]},
        signs=SIGNS,
        meanings=MEANINGS,
        shown=SHOWN,
        counts=[(v, n) for v in VERDICTS if (n := sum(c["verdict"] == v for c in results["claims"]))],
        date=_date(results.get("date")),
        style=_resource("report.css"),
        script=_resource("report.js"),
        plotly=packed(get_plotlyjs()),
    )
    return write_atomically(path, page)


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


def embed(value: Any) -> Any:
    """Return ``value`` as JSON for a script element: nothing in it can end the element."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def prose(text: Any) -> Any:
    """Return plain text as HTML.

    Blank lines separate paragraphs, ``- `` begins an item, backticks mark code, and arXiv ids become links.
    """
    from markupsafe import Markup

    blocks = []
    for block in re.split(r"\n\s*\n", str(text or "").strip()):
        lines = html.escape(block).split("\n")
        if lines[0].lstrip().startswith(("- ", "* ")):
            items = re.split(r"(?m)^\s*[-*] ", "\n".join(lines))[1:]
            blocks.append("<ul>" + "".join(f"<li>{item.strip()}</li>" for item in items) + "</ul>")
        elif lines[0]:
            blocks.append(f"<p>{' '.join(line.strip() for line in lines)}</p>")
    whole = re.sub(r"(`{1,2})([^`]+)\1", r"<code>\2</code>", "".join(blocks))
    whole = re.sub(r"(?<![\d./-])(\d{4}\.\d{5})(?![\d.]\d)", r'<a href="https://arxiv.org/abs/\1">\1</a>', whole)
    return Markup(whole)


def duration(seconds: float | None) -> str:
    """Format seconds for people: ``0.42 s``, ``12 s``, ``3 min 4 s``, ``1 h 12 min``."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{number(float(seconds), 2)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _resource(name: str) -> str:
    return files("gammabeta.pages").joinpath(name).read_text(encoding="utf-8")


def _date(text: Any) -> str:
    try:
        date = datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return str(text or "")
    return f"{date.day} {date:%B %Y, %H:%M %Z}".strip()


def _claim(claim: Json, trials: Json) -> Json:
    """Return a claim as the template needs it: with every optional part, and with figures and intervals drawn."""
    effects = [
        effect | {"svg": interval_svg(effect), "text": _effect_text(effect)} for effect in claim.get("effects") or []
    ]
    drawn = [_drawn(picture) for picture in claim.get("pictures") or []]
    texts = ("question", "sentence", "claim", "criterion", "method", "settings", "known")
    optional = {key: claim.get(key) or "" for key in texts}
    return optional | {
        "name": claim["name"],
        "title": claim.get("title") or claim["name"],
        "verdict": claim["verdict"],
        "slug": claim["verdict"].replace(" ", "-"),
        "exact": bool(claim.get("exact")),
        "sources": claim.get("sources") or [],
        "room": claim.get("room") or {},
        "seconds": claim.get("seconds"),
        "effects": effects,
        "tally": claim.get("tally") or "",
        "regimes": claim.get("regimes") or {},
        "pictures": drawn,
        "tables": claim.get("tables") or [],
        "trials": _trial_tables(claim.get("trials") or [], trials),
        "trial_count": len(claim.get("trials") or []),
    }


def _drawn(picture: Json) -> Json:
    return {
        "title": picture.get("title") or "",
        "caption": picture.get("caption") or "",
        "figure": pictures.figure(picture),
        "missing": pictures.missing(picture),
        "numbers": pictures.numbers(picture),
        "spoken": _description(picture),
    }


def _recommendation(one: Json) -> Json:
    """Return a recommendation as the template needs it."""
    evidence = [{"side": "neither", **item} for item in one.get("evidence") or []]
    return {**one, "evidence": evidence, "pictures": [_drawn(one["picture"])] if one.get("picture") else []}


def packed(script: str) -> str:
    """Return a script as base64 of gzip, a third of its size; the page unpacks it."""
    return base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode()


def _effect_text(effect: Json) -> str:
    text = number(effect["value"])
    low, high = effect.get("low"), effect.get("high")
    if (low, high) not in ((None, None), (effect["value"], effect["value"])):
        text += f" [{number(low)}, {number(high)}]"
    return text


def _description(picture: Json) -> str:
    """Return what a screen reader says about a picture."""
    axes = [pictures.axis_title(picture.get(which) or {}) for which in ("y", "x")]
    what = " against ".join(axis for axis in axes if axis)
    names = ", ".join(str(series["name"]) for series in picture.get("series") or [])
    kind = {"line": "Line chart", "bar": "Bar chart", "heatmap": "Heatmap"}[picture["kind"]]
    return ". ".join(part for part in (f"{kind}: {picture.get('title') or what}", what, names) if part)


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


def _trial_tables(keys: list[str], trials: Json) -> list[Json]:
    """Return a claim's trials, one table per function that was run.

    Settings that all trials share stand above the table, and those that differ are columns.
    """
    runs: dict[str, list[tuple[str, Json]]] = {}
    for key in keys:
        if key in trials:
            runs.setdefault(str(trials[key].get("run") or ""), []).append((key, trials[key]))
    tables = []
    for run, members in runs.items():
        settings = _flat([trial.get("settings") for _, trial in members])
        results = _flat([trial.get("result") for _, trial in members])
        names = list(dict.fromkeys(name for one in settings for name in one))
        same = {n: settings[0].get(n, "") for n in names if len({one.get(n, "") for one in settings}) == 1}
        varying = [name for name in names if name not in same] if len(members) > 1 else []
        outcomes = list(dict.fromkeys(name for one in results for name in one))
        rows = [
            [
                key[:12],
                *(one.get(name, "") for name in varying),
                *(result.get(name, "") for name in outcomes),
                number(float(trial["seconds"]), 2) if trial.get("seconds") is not None else "",
            ]
            for (key, trial), one, result in zip(members, settings, results, strict=True)
        ]
        tables.append(
            {
                "run": run,
                "same": [f"{name} = {value}" for name, value in same.items()],
                "columns": ["trial", *varying, *outcomes, "seconds"],
                "given": 1 + len(varying),
                "rows": rows,
            }
        )
    return tables


def _flat(objects: list[Any]) -> list[dict[str, str]]:
    """Flatten each object to texts by name, nested names joined by a dot."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                yield from walk(item, f"{name}.{key}" if name else str(key))
        elif value is not None or name:
            yield name or "value", _cell(value)

    return [dict(walk(value, "")) for value in objects]


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        if len(value) > LONGEST_LIST:
            return f"{_cell(value[0])}, {_cell(value[1])}, … {_cell(value[-1])} ({len(value)} values)"
        return "[" + ", ".join(_cell(item) for item in value) + "]"
    if isinstance(value, float):
        return number(value, 4)
    return number(value)
