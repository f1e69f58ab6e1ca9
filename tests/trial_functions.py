"""Trial functions for the tests of the engine; worker processes import them from here."""

import time
from pathlib import Path

import torch

from gammabeta.trial import versioned


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


def sleep(*, seconds: float, index: int) -> dict:
    time.sleep(seconds)
    return {"index": index}
