"""The report of a verification, from which its failures can be reproduced: one text to paste, and for notebooks."""

from __future__ import annotations

import shlex
from typing import Any

from gammabeta.pages.notebook import table

MOST_MESSAGE = 600
"""Characters of a message that are printed."""


def text_of(found: dict[str, Any]) -> str:
    """Return the report of a verification, given as JSON has it."""
    lines = [_title(found), ""]
    lines += [f"{name:<16} {value}" for name, value in found["environment"].items()]
    lines += ["", "backend            on             cases  failed  verdict"]
    for b in found["backends"]:
        lines.append(f"{b['backend']:<18} {b['on'] or '-':<14} {b['cases']:>5}  {b['failed']:>6}  {b['verdict']}")
    lines += ["", "certificates"]
    lines += [f"  {name}: {path}" for name, path in found["certificates"].items()] or ["  none were written"]
    lines += [f"  {not_kept(one)}" for one in found["unwritten"].items()]
    lines += missed(found)
    if found["failures"]:
        lines += ["", f"failed cases (seed {found['seed']})"]
    for failure in found["failures"]:
        lines += [
            f"  {failure['case']} on {failure['backend']}",
            f"    {_message(failure)}",
            f"    again: {again(failure)}",
        ]
    return "\n".join(lines)


def html_of(found: dict[str, Any]) -> str:
    """Return a table of the backends as HTML, with the failed cases below; the verification is given as JSON has it."""
    header = ("backend", "on", "cases", "failed", "verdict")
    rows = [(b["backend"], b["on"] or "-", str(b["cases"]), str(b["failed"]), b["verdict"]) for b in found["backends"]]
    below = [f"certificate of {name}: {path}" for name, path in found["certificates"].items()]
    below += [*map(not_kept, found["unwritten"].items()), *missed(found)]
    below += [f"{again(failure)}: {_message(failure)}" for failure in found["failures"]]
    return table(_title(found), header, rows, below)


def _title(found: dict[str, Any]) -> str:
    return f"gammabeta verify: {'passed' if found['passed'] else 'FAILED'}, {found['seconds']:.0f} s"


def _message(failure: dict[str, Any]) -> str:
    message: str = failure["message"]
    return message if len(message) <= MOST_MESSAGE else message[:MOST_MESSAGE] + " …"


def missed(found: dict[str, Any]) -> list[str]:
    """Return a line for each case that this machine does not let run, and each backend not seen through."""
    lines = []
    for backend in found["backends"]:
        lines += [f"not run on {one['backend']}: {one['case']}: {one['reason']}" for one in backend["not_run"]]
        if backend["starved"]:
            lines.append(f"{backend['backend']} was not seen through, which says nothing of it: {backend['starved']}")
    return lines


def not_kept(refused: tuple[str, str]) -> str:
    """Return what it means that a certificate could not be written, given its name and the reason."""
    name, reason = refused
    return (
        f"no certificate of {name} could be written, and without it nothing of this is remembered: {reason}. "
        "XDG_CACHE_HOME names another folder for caches."
    )


def again(failure: dict[str, Any]) -> str:
    """Return the command that runs a failed case again."""
    words = ["gammabeta", "verify", "--backend", failure["backend"], "--case", failure["case"]]
    return shlex.join([*words, "--seed", str(failure["seed"])])
