"""The part of a traceback that is the user's own: from the first frame in the user's code on."""

import traceback
from pathlib import Path

from gammabeta.target import is_installed

# Frames through which torch passes every call of a module, and which say nothing.
_PASSING = ("_call_impl", "_wrapped_call_impl")


def own_traceback(error: BaseException) -> str:
    """Return the traceback of the error, or of what caused it, from the user's code on; "" where none is involved."""
    cause: BaseException | None = error
    while cause is not None:
        frames = traceback.extract_tb(cause.__traceback__)
        first = next((index for index, frame in enumerate(frames) if _is_the_users(frame.filename)), None)
        if first is not None:
            shown = [frame for frame in frames[first:] if frame.name not in _PASSING]
            lines = [*traceback.format_list(shown), *traceback.format_exception_only(cause)]
            return "Traceback (most recent call last):\n" + "".join(lines).rstrip("\n")
        cause = cause.__cause__
    return ""


def _is_the_users(name: str) -> bool:
    path = Path(name)
    return path.is_file() and not is_installed(path.resolve())
