"""A project's settings: the table [tool.gammabeta] of its pyproject.toml."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gammabeta.arguments import did_you_mean
from gammabeta.diagnostics.findings import SEVERITIES

_KEYS = ("select", "ignore", "fail-on")


class ConfigurationError(ValueError):
    """A table with unknown keys or values. The message is one sentence for the person who wrote it."""


@dataclass(frozen=True)
class Configuration:
    """The table's content.

    Attributes:
        select, ignore: as for `check`; None if not set.
        fail_on: the lowest severity at which a finding makes the exit code 1; None if not set, which means "error".
    """

    select: list[str] | None = None
    ignore: list[str] | None = None
    fail_on: str | None = None


def read_configuration(start: Path) -> Configuration:
    """Read the table of the nearest pyproject.toml that has one, from a folder upwards.

    Returns:
        The `Configuration`; with nothing set if there is no such file.

    Raises:
        ConfigurationError: the file is not TOML, or the table has unknown keys or values.
    """
    for folder in (start, *start.parents):
        path = folder / "pyproject.toml"
        if os.path.isfile(path):  # unlike Path.is_file, False where a folder may not be searched
            tools = _table(path, "tool", _read(path).get("tool", {}))
            if "gammabeta" in tools:
                return _parse(path, _table(path, "tool.gammabeta", tools["gammabeta"]))
    return Configuration()


def _table(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path}: expected {name} as a table, got {value!r}: write [tool.gammabeta].")
    return value


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib as toml
    else:
        import tomli as toml
    try:
        table: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
        return table
    except (toml.TOMLDecodeError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}.") from error


def _parse(path: Path, table: dict[str, Any]) -> Configuration:
    for key in table:
        if key not in _KEYS:
            hint = did_you_mean(key, _KEYS, f"known keys are {', '.join(_KEYS)}.", show=str)
            raise ConfigurationError(f"{path}: [tool.gammabeta] has an unknown key {key}: {hint}")
    lists = {}
    for key in ("select", "ignore"):
        value = table.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise ConfigurationError(f'{path}: expected {key} as a list of codes, such as ["GB101"], got {value!r}.')
        lists[key] = value
    fail_on = table.get("fail-on")
    return Configuration(
        lists["select"], lists["ignore"], None if fail_on is None else severity(fail_on, f"{path}: fail-on")
    )


def severity(value: Any, what: str) -> str:
    """Return the value if it is a severity of findings.

    Args:
        value: the value.
        what: where it comes from, for the message.

    Raises:
        ConfigurationError: it is not.
    """
    if value not in SEVERITIES:
        raise ConfigurationError(f"{what}: expected {', '.join(SEVERITIES[:-1])} or {SEVERITIES[-1]}, got {value!r}.")
    return str(value)
