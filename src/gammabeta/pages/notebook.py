"""Tables as HTML for notebooks.

The elements are built by `xml.etree`, which escapes every text: the core does without jinja2, which only the study's
pages need, and nothing here is pasted into HTML. There are no scripts and no colours: text and lines take the page's
colour, so a table reads in light and dark themes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree as ET

_CELL = "text-align: left; vertical-align: top; padding: 0.15em 0.8em 0.15em 0"
_HEAD = f"{_CELL}; border-bottom: 1px solid currentColor"


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], below: Iterable[str] = ()) -> str:
    """Return a title, a table and lines of text as HTML.

    Args:
        title: what the table is about.
        header: the names of the columns.
        rows: the cells of each row; without rows there is no table.
        below: the lines behind the table.
    """
    root = ET.Element("div", {"class": "gammabeta"})
    ET.SubElement(ET.SubElement(root, "div"), "strong").text = _printable(title)
    rows = list(rows)
    if rows:
        grid = ET.SubElement(root, "table", {"style": "border-collapse: collapse; margin: 0.3em 0"})
        head = ET.SubElement(ET.SubElement(grid, "thead"), "tr")
        for name in header:
            ET.SubElement(head, "th", {"style": _HEAD}).text = name
        body = ET.SubElement(grid, "tbody")
        for row in rows:
            line = ET.SubElement(body, "tr")
            for text in row:
                ET.SubElement(line, "td", {"style": _CELL}).text = _printable(text)
    for text in below:
        ET.SubElement(root, "div").text = _printable(text)
    return ET.tostring(root, encoding="unicode", method="html")


def _printable(text: str) -> str:
    """Return a text without the control characters that HTML does not have; names of modules may hold any."""
    return "".join(c if c.isprintable() or c in "\t\n" else f"\\x{ord(c):02x}" for c in text)
