"""Masks: masked values enter no statistic, get no gradient and are zero in the output."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gammabeta.proof.call import Call, masked_elements, run
from gammabeta.proof.case import Case, described, drawn
from gammabeta.proof.check import Comparison, assert_close, assert_conforms, assert_same_bits, computed_by, require
from gammabeta.proof.operations import ADD_OPS, CHANNEL_OPS, SAMPLE_OPS, finishes, modes
from gammabeta.proof.oracle import expected

SHAPE = (5, 6, 7)
PADDING = 9
LEAKS = (math.nan, math.inf, 1e38)


def cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    if op in ADD_OPS:
        return
    for mode in modes(op):
        for kind, mask in masks(op).items():
            for finish in ({"residual": True}, {"residual": True, "activation": "silu"}):
                make = drawn(op, SHAPE, dtype, mask=mask, **mode, **finish)
                yield Case(described(kind, finish, mode), make, _zero_where_masked)
        for finish in finishes(op):
            make = drawn(op, SHAPE, dtype, mask=masks(op)["padding"], **mode, **finish)
            yield Case(described("padding_appended", finish, mode), make, _padding_changes_nothing)
        if dtype == torch.float32:
            yield from _leaks(op, mode)
            yield from _images(op, mode)
            first = torch.arange(SHAPE[_axis(op)]) < 4
            yield Case(
                described("cut_off", mode), drawn(op, SHAPE, dtype, mask=first, residual=True, **mode), _is_cut_off
            )


def without_normalized(op: str, shape: tuple[int, ...] = SHAPE) -> tuple[int, ...]:
    """Return the shape of a mask."""
    return (shape[0], *shape[2:]) if op in CHANNEL_OPS else shape[:-1]


def masks(op: str) -> dict[str, Tensor]:
    """Return the masks of x of `SHAPE` by name."""
    size = without_normalized(op)
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(size, generator=generator) < 0.6
    random[0] = True
    lengths = torch.tensor([size[1], 2, 5, 3, 4])
    sample = random.clone()
    sample[2] = False
    return {
        "random": random,
        "padding": torch.arange(size[1]) < lengths[:, None],
        "a sample": sample,
        "everything": torch.zeros(size, dtype=torch.bool),
        "nothing": torch.ones(size, dtype=torch.bool),
        "one value": torch.arange(size[0] * size[1]).reshape(size) == 8,
        "samples": torch.tensor([[True], [False], [True], [True], [False]]),
        "positions": torch.arange(size[1]) < 4,
        "scalar": torch.tensor(True),
    }


def _leaks(op: str, mode: dict[str, object]) -> Iterator[Case]:
    for kind in ("random", "padding", "a sample", "everything"):
        for value in LEAKS:
            for finish in ({}, {"activation": "silu"}):
                make = drawn(op, SHAPE, torch.float32, mask=masks(op)[kind], residual=True, **mode, **finish)
                name = described("holds", value, kind, finish, mode)
                yield Case(name, make, partial(_does_not_leak, value))


def _images(op: str, mode: dict[str, object]) -> Iterator[Case]:
    """Images and volumes, and several normalized axes."""
    for shape in ((3, 6, 4, 5), (2, 6, 3, 2, 4)):
        mask = torch.rand(without_normalized(op, shape), generator=torch.Generator().manual_seed(0)) < 0.6
        make = drawn(op, shape, torch.float32, mask=mask, residual=True, activation="gelu", **mode)
        yield Case(described("random", shape, mode), make)
    if op in SAMPLE_OPS:
        for normalized, rows in ((2, mask[..., 0]), (3, mask[..., 0, 0]), (4, torch.tensor([True, False]))):
            make = drawn(op, (2, 6, 3, 2, 4), torch.float32, normalized=normalized, mask=rows)
            yield Case(described("normalized_axes", normalized), make)


def _counts(call: Call) -> Tensor:
    counts = masked_elements(call)
    assert counts is not None
    return counts


def _axis(op: str) -> int:
    return 2 if op in CHANNEL_OPS else 1


def _zero_where_masked(call: Call, route: str) -> list[Comparison]:
    require(not run(call)["output"][~_counts(call)].any(), "the output is not zero where masked")
    return assert_conforms(call, route)


def _does_not_leak(value: float, call: Call, route: str) -> list[Comparison]:
    """Whatever is in the masked places of x, of the residual and of the gradient, the results have the same bits."""
    hidden = ~_counts(call)
    tensors = {n: t.masked_fill(hidden, value) for n in ("input", "residual") if (t := call.tensor(n)) is not None}
    spoilt = replace(call.with_tensors(**tensors), gradients=(call.gradients[0].masked_fill(hidden, value),))
    assert_same_bits(run(spoilt), run(call), f"with {value} where masked")
    return []


def _padding_changes_nothing(call: Call, route: str) -> list[Comparison]:
    """The same numbers with more padding behind them equal the oracle's of the shorter ones, to rounding."""
    axis = _axis(call.op)
    padded = _padded(call, axis, PADDING)
    results = run(padded)
    for name, result in results.items():
        if result.shape == padded.input.shape:
            require(not result.narrow(axis, SHAPE[axis], PADDING).any(), f"{name} is not zero in the padding")
            results[name] = result.narrow(axis, 0, SHAPE[axis])
    return assert_close(call, results, expected(call), computed_by(call, route), "with padding appended")


def _padded(call: Call, axis: int, count: int) -> Call:
    def longer(t: Tensor, axis: int, value: float) -> Tensor:
        shape = list(t.shape)
        shape[axis] = count
        return torch.cat([t, t.new_full(shape, value)], axis)

    tensors = {name: longer(t, axis, 3.0) for name in ("input", "residual") if (t := call.tensor(name)) is not None}
    return replace(
        call.with_tensors(mask=longer(call.given("mask"), 1, False), **tensors),
        gradients=tuple(longer(g, axis, 2.0) for g in call.gradients),
    )


def _is_cut_off(call: Call, route: str) -> list[Comparison]:
    """The masked places cut off: one operation with a mask equals another without."""
    axis = _axis(call.op)
    tensors = {n: t.narrow(axis, 0, 4) for n in ("input", "residual") if (t := call.tensor(n)) is not None}
    short = replace(call.with_tensors(mask=None, **tensors), gradients=(call.gradients[0].narrow(axis, 0, 4),))
    results = run(call)
    for name in ("output", "grad input", "grad residual"):
        results[name] = results[name].narrow(axis, 0, 4)
    return assert_close(short, results, expected(short), "ops")
