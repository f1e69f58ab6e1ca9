"""Atomic writes: a reader of the file never sees half of it."""

from __future__ import annotations

import contextlib
from pathlib import Path


def write_atomically(path: Path | str, text: str) -> Path:
    """Write a text file in one step, in UTF-8; the folder is made if it is missing.

    What UTF-8 has no form for is written as \\udcff: bytes of file names that are no text. JSON reads it back.

    Args:
        path: the file; what it held before stays there until the whole new text is written.
        text: the new content.

    Returns:
        The path.

    Raises:
        OSError: the file cannot be written; it is then as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    except BaseException:  # also Ctrl-C
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    return path
