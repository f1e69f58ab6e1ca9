"""The trials behind a claim as tables, one for each function that was run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gammabeta.pages.axes import Json, number

LONGEST_LIST = 8  # longest list of a trial that the page shows in full; results.json has all values


def trial_tables(keys: list[str], trials: Json) -> list[Json]:
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
