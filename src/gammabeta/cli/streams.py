"""Output that every terminal and every redirection can take: characters that an encoding lacks are written out."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from typing import Any

_NEVER_RAISE = ("ignore", "replace", "xmlcharrefreplace", "backslashreplace", "namereplace")
_LOOKALIKES = {
    "→": "->",
    "←": "<-",
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
    "≈": "~",
    "×": "x",
    "·": "*",
    "−": "-",
    "–": "-",
    "—": "-",
    "±": "+/-",
    "√": "sqrt",
    "∞": "inf",
    "²": "^2",
    "³": "^3",
    "•": "*",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "✓": "ok",
    "µ": "mu",
    "°": " degrees",
}


def lookalike(text: str) -> str:
    """Return a text in ASCII: γ as gamma, ≤ as <=, ü as u, box drawings as lines of - and |, all else as ?."""
    return "".join(character if character.isascii() else _ascii(character) for character in text)


def _ascii(character: str) -> str:
    if character in _LOOKALIKES:
        return _LOOKALIKES[character]
    name = unicodedata.name(character, "")
    if name.startswith("GREEK ") and " LETTER " in name:
        letter = name.split(" LETTER ")[1].split()[0].lower()
        return letter.capitalize() if " CAPITAL " in name else letter
    if name.startswith("BOX DRAWINGS"):
        return "-" if name.endswith("HORIZONTAL") else "|" if name.endswith("VERTICAL") else "+"
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file's name that is not in the file system's encoding
        return f"\\x{ord(character) - 0xDC00:02x}"
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def handler_of(encoding: str) -> str:
    """Register the error handler of an encoding, and return its name.

    It writes lookalikes, and ? for those of their characters that the encoding lacks too: cp864 has no %. Each encoding
    has its own, because an error does not say which one it is of: of many it says "charmap".
    """

    def replace(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        text = lookalike(error.object[error.start : error.end])
        return "".join(character if _has(encoding, character) else "?" for character in text), error.end

    name = f"gammabeta.lookalike.{encoding}"
    codecs.register_error(name, replace)
    return name


def _has(encoding: str, character: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeError:
        return False
    return True


def open_closed() -> None:
    """Discard what is written to a standard output or error that was closed when the process began (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends


def accept_every_character() -> None:
    """Make standard output and error write lookalikes of what their encoding lacks, in place of an exception."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        # Those of _NEVER_RAISE are what the user asked for in PYTHONIOENCODING; standard error's own is not.
        own = stream is sys.stderr and getattr(stream, "errors", None) == "backslashreplace"
        if reconfigure is not None and (own or stream.errors not in _NEVER_RAISE):
            reconfigure(errors=handler_of(stream.encoding))


def as_utf_8() -> None:
    """Make standard output UTF-8, whatever the terminal's encoding."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors=handler_of("utf-8"))


def silence() -> None:
    """Discard what is still to be written, because the reader of a pipe is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        number = _number(stream)
        if number is not None and _is_broken(stream):
            os.dup2(nowhere, number)


def _number(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None


def _is_broken(stream: Any) -> bool:
    try:
        stream.flush()
    except (OSError, ValueError):
        return True
    return False
