"""The same bits from run to run, and of the CPU's kernels for any number of threads.

Tensors are large enough to be shared out among threads or programs, and unevenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from gammabeta.proof.call import Call, run
from gammabeta.proof.case import KERNELS, Case, described, drawn
from gammabeta.proof.check import Comparison, assert_conforms, assert_same_bits
from gammabeta.proof.operations import CHANNEL_OPS, finishes, modes

CHANNEL_SHAPES = ((4, 12, 40, 41), (1, 2, 150, 201), (1501, 24, 3))
SAMPLE_SHAPES = ((515, 130), (3, 20_001))
THREADS = (2, 3)
# Tensors of more than 8 MiB, which the CPU's kernels store past the caches: one for each walk over memory. All threads
# work on the one statistic of a tensor, or on the parameters' gradients, at the same moment.
LARGE: dict[str, dict[str, Any]] = {
    "batch_norm": {"shape": (3, 1, 601, 1199), "training": True},
    "group_norm": {"shape": (1, 8, 601, 599), "groups": 1},
    "layer_norm": {"shape": (1451, 1501)},
}
RUNS = 4
"""With each number of threads: those that wake while others are done already do not meet in every run."""


def cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    if dtype not in (torch.float32, torch.bfloat16):
        return
    finish = finishes(op)[-1]
    for shape in CHANNEL_SHAPES if op in CHANNEL_OPS else SAMPLE_SHAPES:
        layouts = (False, True) if op in CHANNEL_OPS and len(shape) == 4 else (False,)
        for mode in modes(op)[:1]:
            for last in layouts:
                layout = _channels_last if last else torch.Tensor.contiguous
                make = drawn(op, shape, dtype, layout=layout, **mode, **finish)
                yield Case(described(shape, mode, finish, {"channels_last": last}), make, _the_same, KERNELS)

    if dtype == torch.float32 and op in LARGE:
        make = drawn(op, dtype=dtype, **LARGE[op])
        yield Case(described("large", LARGE[op]["shape"]), make, partial(_the_same, runs=RUNS), routes=("ops", "cuda"))


def _channels_last(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _the_same(call: Call, route: str, runs: int = 1) -> list[Comparison]:
    first = run(call)
    threads = torch.get_num_threads()
    try:
        for number in THREADS:
            if route == "ops":
                torch.set_num_threads(number)
            for _ in range(runs):
                assert_same_bits(run(call), first, f"in another run, with {torch.get_num_threads()} threads")
    finally:
        torch.set_num_threads(threads)
    return assert_conforms(call, route)
