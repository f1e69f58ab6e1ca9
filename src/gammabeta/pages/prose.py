"""Texts of a study as HTML: prose, code, durations and dates, and JSON inside a page."""

from __future__ import annotations

import datetime
import html
import json
import re
from typing import Any

from gammabeta.pages.axes import number


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


# A call or a name of gammabeta's, with brackets inside its brackets, and what it is assigned to.
_CALL = re.compile(r"(?:\w+ = )?\bgb\.[\w.]*\w(?:\((?:[^()]|\([^()]*\))*\))?")


def calls(text: Any) -> list[str]:
    """Return the calls of gammabeta that a text names: those in backticks, or whatever begins with ``gb.``."""
    return re.findall(r"`([^`]+)`", str(text or "")) or _CALL.findall(str(text or ""))


def coded(text: Any) -> Any:
    """Return a line of plain text as HTML with its calls of gammabeta, and what is in backticks, as code."""
    from markupsafe import Markup

    escaped = html.escape(str(text or ""), quote=False)
    if "`" in escaped:
        return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))
    return Markup(_CALL.sub(lambda found: f"<code>{found[0]}</code>", escaped))


def date(text: Any) -> str:
    """Format a date of ISO 8601 for people; other text stays as it is."""
    try:
        when = datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return str(text or "")
    return f"{when.day} {when:%B %Y, %H:%M %Z}".strip()


def listed(items: Any) -> str:
    """Join texts as in "digits, strokes and text"."""
    *first, last = [str(item) for item in items] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def capitalized(text: str) -> str:
    """Return a text as a sentence: with a capital letter, unless it begins with a symbol such as γ, and a full stop."""
    whole = text[:1].upper() + text[1:] if text[:1].isascii() else text
    return whole if whole.endswith((".", "!", "?")) else f"{whole}."
