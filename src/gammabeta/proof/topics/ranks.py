"""Statistics over two processes: BatchNorm of both parts of a batch is BatchNorm of the batch.

The processes are joined by gloo on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gammabeta.distributed import processes
from gammabeta.proof.call import Call
from gammabeta.proof.case import Case, described, drawn
from gammabeta.proof.check import Comparison, assert_close
from gammabeta.proof.operations import finishes
from gammabeta.proof.oracle import expected
from gammabeta.proof.topics.sources import by_layer
from gammabeta.statistics import Synced

SHAPE = (7, 5, 4, 3)
PARTS = (5, 2)
OF_SAMPLES = ("output", "grad input", "grad residual")


def cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    if op != "batch_norm" or not processes.available():
        return
    mask = torch.rand(SHAPE[0], *SHAPE[2:], generator=torch.Generator().manual_seed(0)) < 0.7
    for finish in finishes(op):
        for name, given in (("all", None), ("mask", mask)):
            make = drawn(op, SHAPE, dtype, training=True, mask=given, mean=30.0, **finish)
            yield Case(described(name, finish), make, _over_ranks, ("ops", "reference"))


def _over_ranks(call: Call, route: str) -> list[Comparison]:
    settings = {"call": call, "sizes": PARTS, "route": route}
    parts = processes.run("gammabeta.proof.topics.ranks:of_rank", settings, len(PARTS))
    results: dict[str, Tensor] = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name in OF_SAMPLES:
            results[name] = torch.cat(values)
        elif name.startswith("grad"):
            results[name] = torch.stack(values).sum(0)  # each process has its own sums
        else:
            results[name] = values[0]
    return assert_close(call, results, expected(call), "ops")


def of_rank(call: Call, sizes: tuple[int, ...], route: str) -> dict[str, Tensor]:
    """Return the results of this process's part of the batch."""
    import torch.distributed as dist

    from gammabeta.proof.backends import entered

    with entered(route, "cpu"):
        return by_layer(split(call, sizes)[dist.get_rank()], Synced())


def split(call: Call, sizes: tuple[int, ...]) -> list[Call]:
    """Return the call in parts of so many samples."""
    parts: list[Call] = []
    names = ("input", "residual", "mask")
    tensors: dict[str, Any] = {n: t.split(sizes) for n in names if (t := call.tensor(n)) is not None}
    gradients = [g.split(sizes) for g in call.gradients]
    for i in range(len(sizes)):
        own = {name: pieces[i] for name, pieces in tensors.items()}
        parts.append(replace(call.with_tensors(**own), gradients=tuple(g[i] for g in gradients)))
    return parts
