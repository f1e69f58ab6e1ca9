"""What a project says once for all: the table [tool.gammabeta] of its pyproject.toml."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gammabeta.arguments import did_you_mean
from gammabeta.diagnostics.findings import SEVERITIES

_KEYS = ("select", "ignore", "fail-on")


class ConfigurationError(ValueError):
    """A table that says something else. The message is one sentence for the person who wrote it."""


@dataclass(frozen=True)
class Configuration:
    """What is in the table.

    Attributes:
        select, ignore: as `check` takes them; None where it does not say.
        fail_on: the least severity of a finding that makes the exit code 1; None is "error".
    """

    select: list[str] | None = None
    ignore: list[str] | None = None
    fail_on: str | None = None


def configuration(start: Path) -> Configuration:
    """The table of the nearest pyproject.toml that has one, from a folder upwards; the defaults where there is none.

    Raises:
        ConfigurationError: the file is no TOML, or the table has other keys or values.
    """
    for folder in (start, *start.parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            table = _read(path).get("tool", {}).get("gammabeta")
            if table is not None:
                return _of(path, table)
    return Configuration()


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib as toml
    else:
        import tomli as toml
    try:
        return toml.loads(path.read_text(encoding="utf-8"))
    except (toml.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}.") from error


def _of(path: Path, table: dict[str, Any]) -> Configuration:
    for key in table:
        if key not in _KEYS:
            hint = did_you_mean(key, _KEYS, f"there are {', '.join(_KEYS)}.", show=str)
            raise ConfigurationError(f"{path}: [tool.gammabeta] has a key {key}, which is not known: {hint}")
    lists = {}
    for key in ("select", "ignore"):
        value = table.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise ConfigurationError(f'{path}: expected {key} as a list of codes, as ["GB101"], got {value!r}.')
        lists[key] = value
    fail_on = table.get("fail-on")
    return Configuration(
        lists["select"], lists["ignore"], None if fail_on is None else severity(fail_on, f"{path}: fail-on")
    )


def severity(value: Any, what: str) -> str:
    """The value, if it is one that findings have.

    Raises:
        ConfigurationError: it is none.
    """
    if value not in SEVERITIES:
        raise ConfigurationError(f"{what}: expected {', '.join(SEVERITIES[:-1])} or {SEVERITIES[-1]}, got {value!r}.")
    return str(value)
