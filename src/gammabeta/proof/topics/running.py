"""Running statistics: how far they move, and when they do not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from gammabeta.proof.call import RUNNING, Call, run
from gammabeta.proof.case import Case, described, drawn
from gammabeta.proof.check import Comparison, assert_close, assert_conforms, require
from gammabeta.proof.operations import DTYPES
from gammabeta.proof.oracle import expected

MOVING = {"batch_norm": {"training": True}, "instance_norm": {}}
HELD = {"batch_norm": {"training": False}, "instance_norm": {"use_input_stats": False}}
SHAPE = (5, 6, 8)


def cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    if op not in MOVING:
        return
    for statistics in DTYPES:
        given = dict.fromkeys(RUNNING, statistics)
        for momentum in (0.0, 1.0, 0.1):
            make = drawn(op, SHAPE, dtype, dtypes=given, momentum=momentum, **MOVING[op])
            yield Case(described(statistics, {"momentum": momentum}), make, _moves)
        make = drawn(op, SHAPE, dtype, dtypes=given, momentum=0.3, **MOVING[op])
        yield Case(described(statistics, "not_finite"), make, _keeps_channels_that_are_not_finite)
    for absent in RUNNING:
        make = drawn(op, SHAPE, dtype, **MOVING[op])
        yield Case(described("without", absent), make, partial(_moves_the_other, absent))
    yield Case("held", drawn(op, SHAPE, dtype, **HELD[op]), _moves_nothing)


def _moves(call: Call, route: str) -> list[Comparison]:
    compared, after = assert_conforms(call, route), run(call)
    for name in RUNNING:
        moved = after[name] != call.given(name)
        as_it_has_to = bool(moved.all()) if call.setting("momentum") else not moved.any()
        require(as_it_has_to, f"{name} moved in {int(moved.sum())} channels at momentum {call.setting('momentum')}")
    return compared


def _moves_nothing(call: Call, route: str) -> list[Comparison]:
    after = run(call)
    for name in RUNNING:
        require(torch.equal(after[name], call.given(name)), f"{name} moved in evaluation")
    return []


def _moves_the_other(absent: str, call: Call, route: str) -> list[Comparison]:
    """One of the two alone moves as it does beside the other."""
    (present,) = {*RUNNING} - {absent}
    after = run(call.with_tensors(**{absent: None}))
    return assert_close(call, {present: after[present]}, {present: expected(call)[present]}, "ops")


def _keeps_channels_that_are_not_finite(call: Call, route: str) -> list[Comparison]:
    """Those stay as they were, and the others move as the oracle's do."""
    x = call.input.clone()
    x[0, 1, 2], x[4, 3, 0], x[2, 4, 7] = math.nan, math.inf, -math.inf
    spoilt = call.with_tensors(input=x)
    after = {name: result for name, result in run(spoilt).items() if name in RUNNING}
    kept = torch.zeros(SHAPE[1], dtype=torch.bool)
    kept[[1, 3, 4]] = True
    for name in RUNNING:
        before = call.given(name)
        require(torch.equal(after[name][kept], before[kept]), f"{name} moved where the batch is not finite")
        require(bool((after[name][~kept] != before[~kept]).all()), f"{name} stayed where the batch is finite")
    clean = expected(call)
    wanted = {name: torch.where(kept, after[name].double(), clean[name]) for name in RUNNING}
    return assert_close(call, after, wanted, "ops")
