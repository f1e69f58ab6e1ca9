"""Whose fault an exception is: the user's code, which the check runs, or gammabeta's own."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import gammabeta

_OURS = Path(gammabeta.__file__).parent
# The layers and what they compute with run inside the user's forward and raise what the user's call deserves.
_TOOLS = ("cli", "diagnostics", "introspection", "surgery", "monitoring", "lab", "benchmarks", "pages")


def of_the_user(error: BaseException, targets: Sequence[str]) -> str | None:
    """Return the line of the user's code that an exception comes from, as "train.py, line 12"; None if it is ours.

    Args:
        error: the exception.
        targets: what the user named, as "package.module:name" or "file.py:name". Their files, and those beside them,
            are the user's code. The innermost frame in them or in ours counts.
    """
    if str(error).startswith("Caught ") and "DataLoader worker" in str(error):
        return "in a worker of a DataLoader"
    folders = [folder for target in targets for folder in _folders(target)]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_OURS):
            if path.relative_to(_OURS).parts[0] in _TOOLS:
                return None
        elif any(path.is_relative_to(folder) for folder in folders):
            return f"{path.name}, line {frame.lineno}"
    return None


def describe(error: BaseException) -> str:
    """Describe an exception in one line: its class and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _folders(target: str) -> list[Path]:
    """Return the folder of a target's file, or those of its package."""
    where = target.partition(":")[0]
    if where.endswith(".py"):
        return [Path(where).expanduser().resolve().parent]
    package = sys.modules.get(where.partition(".")[0])
    if package is None or where.partition(".")[0] == "torch":
        return []
    paths = list(getattr(package, "__path__", ())) or [getattr(package, "__file__", None)]
    return [Path(path) for path in paths if path]
