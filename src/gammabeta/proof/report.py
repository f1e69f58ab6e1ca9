"""The report of a verification: one text to paste, from which its failures can be reproduced."""

from __future__ import annotations

import shlex
from typing import Any

MOST_MESSAGE = 600
"""Characters of a message that are printed."""


def text_of(found: dict[str, Any]) -> str:
    """Return the report of a verification, given as JSON has it."""
    lines = [f"gammabeta verify: {'passed' if found['passed'] else 'FAILED'}, {found['seconds']:.0f} s", ""]
    lines += [f"{name:<16} {value}" for name, value in found["environment"].items()]
    lines += ["", "backend            on             cases  failed  verdict"]
    for b in found["backends"]:
        lines.append(f"{b['backend']:<18} {b['on'] or '-':<14} {b['cases']:>5}  {b['failed']:>6}  {b['verdict']}")
    lines += ["", "certificates"]
    lines += [f"  {name}: {path}" for name, path in found["certificates"].items()] or ["  none were written"]
    if found["failures"]:
        lines += ["", f"failed cases (seed {found['seed']})"]
    for failure in found["failures"]:
        message = failure["message"]
        message = message if len(message) <= MOST_MESSAGE else message[:MOST_MESSAGE] + " …"
        lines += [f"  {failure['case']} on {failure['backend']}", f"    {message}", f"    again: {again(failure)}"]
    return "\n".join(lines)


def again(failure: dict[str, Any]) -> str:
    """Return the command that runs a failed case again."""
    words = ["gammabeta", "verify", "--backend", failure["backend"], "--case", failure["case"]]
    return shlex.join([*words, "--seed", str(failure["seed"])])
