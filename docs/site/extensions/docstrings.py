"""Docstrings as reStructuredText: what they write otherwise, before napoleon reads their sections."""

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

SPAN = re.compile(r"(`[^`]+`)")
BARE = re.compile(r"[|*]|(?<=\w)_(?=\W|$)")
EXCEPTION = re.compile(r"^(    )(\w+)(?=:)")


def escaped(line: str) -> str:
    """Escape stars, bars and trailing underscores outside of code, which reStructuredText reads as markup."""
    return "".join(part if part.startswith("`") else BARE.sub(r"\\\g<0>", part) for part in SPAN.split(line))


def paragraphs(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the sections of a docstring, each a heading ("" before the first one) with its lines."""
    heading, held = "", []
    for line in lines:
        if re.fullmatch(r"(Args|Attributes|Returns|Yields|Raises|Source|Example):.*", line):
            yield heading, held
            heading, held = line.partition(":")[0], [line]
        else:
            held.append(line)
    yield heading, held


def example(held: list[str]) -> list[str]:
    """Return an Example section as a block of code."""
    body = textwrap.dedent("\n".join(held[1:])).strip("\n").splitlines()
    return ["", ".. rubric:: Example", "", ".. code-block:: python", "", *(f"    {line}" for line in body), ""]


def qualified(line: str, known: dict[str, Any]) -> str:
    """Return a line of a Raises section with an exception of gammabeta under its whole name."""
    match = EXCEPTION.match(line)
    raised = known.get(match[2]) if match else None
    if isinstance(raised, type) and raised.__module__.startswith("gammabeta."):
        return f"    {raised.__module__}.{raised.__qualname__}{line[match.end() :]}"  # type: ignore[union-attr]
    return line


def processed(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite the lines of a docstring in place."""
    known = getattr(obj, "__globals__", None) or getattr(getattr(obj, "__init__", None), "__globals__", {})
    new: list[str] = []
    for heading, held in paragraphs(lines):
        if heading == "Example":
            new += example(held)
        elif heading == "Raises":
            new += [escaped(qualified(line, known)) for line in held]
        elif heading == "Source" and held[0] != "Source:":
            # "Source: Chan 1983": a paragraph.
            new += ["", f"**Source**{escaped(held[0].removeprefix('Source'))}", *(escaped(line) for line in held[1:])]
        else:
            new += [escaped(line) for line in held]
    lines[:] = new


def setup(app: Sphinx) -> dict[str, Any]:
    """Run before napoleon, which is connected with the usual priority."""
    app.connect("autodoc-process-docstring", processed, priority=400)
    return {"parallel_read_safe": True}
