"""Signals that end a command as Ctrl-C does."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

# Of a batch system or `timeout`, and of a terminal that closes. Windows has no SIGHUP.
_NAMES = ("SIGTERM", "SIGHUP")


@contextlib.contextmanager
def as_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt inside on the first SIGTERM or SIGHUP; later ones are ignored until the command ends.

    A signal that is ignored, as SIGHUP under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()
    terminals = [number for number in _outputs() if os.isatty(number)]

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a fork has the handler too, and is ended by its parent with this signal
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        _leave(terminals)
        raise KeyboardInterrupt

    before = {}
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outputs() -> list[int]:
    """Return the descriptors of standard output and error, where they are open files."""
    found = []
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.append(stream.fileno())
    return found


def _leave(terminals: list[int]) -> None:
    """Discard what is still to be written to a terminal that is gone; the report can be written all the same."""
    for number in terminals:
        if not os.isatty(number):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
