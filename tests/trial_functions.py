"""Trial functions for the tests of the engine; worker processes import them from here."""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from gammabeta.lab.trials.trial import versioned


@versioned(3)
def draw(*, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 40, generator=generator)
    return {"value": float((x @ x).sum()), "nan": float("nan"), "timing": {"clock": time.perf_counter()}}


def count(*, folder: str, name: str) -> dict:
    with (Path(folder) / name).open("a") as file:
        file.write("run\n")
    return {"name": name}


def fail(*, reason: str) -> dict:
    raise ValueError(reason)


def leave(*, code: int) -> dict:
    sys.exit(code)


def sleep(*, seconds: float, index: int) -> dict:
    time.sleep(seconds)
    return {"index": index}


def _attempt(folder: str) -> int:
    with (Path(folder) / "attempts").open("a") as file:
        file.write("x")
    return len((Path(folder) / "attempts").read_text())


def count_and_fail(*, folder: str, index: int) -> dict:
    _attempt(folder)
    raise ValueError("always")


def fail_at_first(*, folder: str, times: int) -> dict:
    attempt = _attempt(folder)
    if attempt <= times:
        raise ValueError(f"attempt {attempt}")
    return {"attempt": attempt}


def die_at_first(*, folder: str, times: int) -> dict:
    attempt = _attempt(folder)
    if attempt <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"attempt": attempt}


def where(*, index: int) -> dict:
    time.sleep(0.2)
    return {"index": index, "process": os.getpid()}


GROWN = []


def grow():
    """Make this process as large as that loky puts another one in its place, which it looks at every second."""
    GROWN.append(bytearray(os.urandom(1 << 20)) * 400)
    time.sleep(1.2)
    return os.getpid()


def hears_ctrl_c():
    """Return this process's id, and whether SIGINT would reach it."""
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return os.getpid(), not blocked and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
