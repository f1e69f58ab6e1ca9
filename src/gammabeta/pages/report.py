"""The report of a study: one HTML page that opens offline, with plotly.js, style and data inside."""

from __future__ import annotations

import base64
import gzip
import json
from importlib.resources import files
from pathlib import Path

from gammabeta.pages.atomic import write_atomically
from gammabeta.pages.axes import Json, number
from gammabeta.pages.card import SIDES, card
from gammabeta.pages.claim_section import SHOWN, effect_table, section
from gammabeta.pages.prose import coded, date, duration, embed, listed, prose
from gammabeta.pages.summary import groups
from gammabeta.pages.validation import ReportError, check
from gammabeta.pages.verdicts import MEANINGS, SIGNS

__all__ = ["ReportError", "read_results", "write_report"]

TEMPLATES = ("report", "parts", "card", "claim")
STYLES = ("report.css", "study.css", "print.css")
SCRIPTS = ("report.js", "pictures.js")


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
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.DictLoader({name: _resource(f"{name}.html.jinja") for name in TEMPLATES}),
    )
    environment.filters |= {"number": number, "prose": prose, "embed": embed, "duration": duration, "coded": coded}
    environment.filters["effect_table"] = effect_table
    # A column of numbers is right-aligned, and so is its heading.
    environment.tests["worded"] = lambda cell: isinstance(cell, str | bool)
    environment.globals |= {"signs": SIGNS, "meanings": MEANINGS, "sides": SIDES, "most_regimes": SHOWN["regimes"]}
    claims = {claim["name"]: claim for claim in results["claims"]}
    run = str(results.get("command") or "")
    sections = [section(claim, results.get("trials") or {}, run) for claim in results["claims"]]
    tasks = results.get("tasks") or [results.get("task") or {}]
    page = environment.get_template("report").render(
        results=results,
        tasks=[task for task in tasks if task],
        data_table=_data_table(tasks),
        named=listed([task["name"] for task in tasks if task.get("name")] or ["this task"]),
        status=_status(results),
        cards=[card(one, claims) for one in results.get("recommendations") or []],
        empirical=[one for one in sections if not one["exact"]],
        identities=[one for one in sections if one["exact"]],
        groups=groups(sections),
        date=date(results.get("date")),
        style="\n".join(map(_resource, STYLES)),
        script="\n".join(map(_resource, SCRIPTS)),
        plotly=packed(get_plotlyjs()),
    )
    return write_atomically(path, page)


def _status(results: Json) -> str:
    """Return whether the run is confirmatory or exploratory; "" where the results do not say."""
    if results.get("status"):
        return str(results["status"])
    confirmatory = results.get("confirmatory")
    return "" if confirmatory is None else "confirmatory" if confirmatory else "exploratory"


def _data_table(tasks: list[Json]) -> Json:
    """Return the facts of all data sets as a table."""
    splits = ("train", "validation", "test")
    columns = ["data", "kind", "shape", "classes", *splits, *(f"{split}, available" for split in splits), "source"]
    rows = []
    for task in tasks:
        used, available = task.get("samples") or {}, task.get("available") or {}
        shape = " × ".join(map(str, task.get("shape") or []))
        counts = [*(used.get(split) for split in splits), *(available.get(split) for split in splits)]
        rows.append([task.get("name"), task.get("kind"), shape, task.get("classes"), *counts, task.get("description")])
    return {"columns": columns, "rows": rows}


def packed(script: str) -> str:
    """Return a script as base64 of gzip, a third of its size; the page unpacks it."""
    return base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode()


def _resource(name: str) -> str:
    return files("gammabeta.pages").joinpath(name).read_text(encoding="utf-8")
