"""Statistics over two processes: BatchNorm of both parts of a batch is BatchNorm of the batch.

The processes are joined by gloo on the CPU. Starting them takes seconds, so one case goes through all dtypes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gammabeta.distributed import processes
from gammabeta.proof.backends import entered
from gammabeta.proof.call import Call
from gammabeta.proof.case import Case, drawn
from gammabeta.proof.check import Comparison, NotRunError, assert_close
from gammabeta.proof.operations import DTYPES
from gammabeta.proof.oracle import expected
from gammabeta.proof.topics.sources import by_layer
from gammabeta.statistics import Synced

SHAPE = (7, 5, 4, 3)
PARTS = (5, 2)
OF_SAMPLES = ("output", "grad input", "grad residual")


def cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    if op != "batch_norm" or dtype != torch.float32 or not processes.available():
        return
    mask = torch.rand(SHAPE[0], *SHAPE[2:], generator=torch.Generator().manual_seed(0)) < 0.7
    settings = {"training": True, "mask": mask, "residual": True, "activation": "silu", "mean": 30.0}
    yield Case("two_processes", drawn(op, SHAPE, dtype, **settings), _over_ranks, ("ops", "reference"))


def _variants(call: Call) -> list[Call]:
    """Return the call in every dtype; with and without a mask, and a residual and an activation, in turn."""
    found = []
    for i, dtype in enumerate(DTYPES):
        # Parameters of at least float32: the processes' own gradients of them are rounded before they are added up.
        wide = torch.promote_types(dtype, torch.float32)
        to = {"input": dtype, "residual": dtype, "mask": torch.bool}
        tensors = {name: None if t is None else t.to(to.get(name, wide)) for name, t in call.tensors.items()}
        own = replace(call, tensors=tensors, gradients=tuple(g.to(dtype) for g in call.gradients))
        own = own if i % 2 else own.with_tensors(mask=None)
        found.append(own if i // 2 else own.with_tensors(residual=None).with_settings(activation=None))
    return found


def _over_ranks(call: Call, route: str) -> list[Comparison]:
    calls, compared = _variants(call), []
    settings = {"calls": calls, "sizes": PARTS, "route": route}
    try:
        by_rank = processes.run("gammabeta.proof.topics.ranks:of_rank", settings, len(PARTS))
    except processes.JoinError as error:
        raise NotRunError(f"two processes cannot join here: {str(error).splitlines()[-1]}") from None
    for whole, *parts in zip(calls, *by_rank, strict=True):
        compared += assert_close(whole, _together(parts), expected(whole), "ops")
    return compared


def _together(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name in OF_SAMPLES:
            results[name] = torch.cat(values)
        elif name.startswith("grad"):
            results[name] = torch.stack(values).sum(0)  # each process has its own sums
        else:
            results[name] = values[0]
    return results


def of_rank(calls: list[Call], sizes: tuple[int, ...], route: str) -> list[dict[str, Tensor]]:
    """Return the results of this process's part of every batch."""
    with entered(route, "cpu"):
        return [by_layer(split(call, sizes)[dist.get_rank()], Synced()) for call in calls]


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
