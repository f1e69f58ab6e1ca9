"""Sizes: ragged, one, none, many; and large enough for a kernel to work in several pieces."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gammabeta.proof.case import Case, described, drawn
from gammabeta.proof.operations import CHANNEL_OPS, Mode, finishes, modes, takes_batch

CHANNEL_SHAPES = (
    (1, 1, 7), (1, 7, 769), (7, 1, 7), (769, 7), (7, 769), (2, 769), (2, 769, 1), (769, 1, 1), (1, 3, 1, 7),
    (2, 7, 7, 1), (3, 7, 1, 1, 2),
)  # fmt: skip
SAMPLE_SHAPES = (
    ((1, 1), 1), ((1, 7), 1), ((7, 1), 1), ((1, 769), 1), ((769, 7), 1), ((7, 769), 1), ((769,), 1), ((7, 769), 2),
    ((2, 7, 769), 1), ((769, 1, 7), 2), ((1, 1, 1, 7), 3),
)  # fmt: skip
# Several pieces of a plane, of rows, of columns; the last piece not whole. Not in float64, in which the oracle's own
# sums over so many values are off by more than what is allowed.
LARGE_CHANNEL_SHAPES = ((3, 2, 5003), (131, 3, 67), (3001, 11))
LARGE_SAMPLE_SHAPES = ((3, 9001), (2003, 11))


def cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    yield from _of_channels(op, dtype) if op in CHANNEL_OPS else _of_samples(op, dtype)
    yield from _empty(op, dtype)
    if dtype.itemsize == 2:
        yield from _many_samples(op, dtype)


def _of_channels(op: str, dtype: torch.dtype) -> Iterator[Case]:
    for shape in (*CHANNEL_SHAPES, (1, 6, 5, 4), *(LARGE_CHANNEL_SHAPES if dtype != torch.float64 else ())):
        groups = [g for g in (1, 7, 769) if shape[1] % g == 0]
        for mode in [{"groups": g} for g in groups] if op == "group_norm" else modes(op):
            if not _refused(op, shape, mode):
                for finish in finishes(op, "relu"):
                    yield Case(described(shape, mode, finish), drawn(op, shape, dtype, **mode, **finish))


def _refused(op: str, shape: tuple[int, ...], mode: Mode) -> bool:
    """Return whether there is one value per channel (per group of one image), which is no statistic."""
    positions = torch.Size(shape[2:]).numel()
    if op == "batch_norm":
        return takes_batch(op, mode) and shape[0] * positions == 1
    if op == "instance_norm":
        return positions == 1 and mode.get("use_input_stats", True)
    return False


def _of_samples(op: str, dtype: torch.dtype) -> Iterator[Case]:
    large = () if dtype == torch.float64 else tuple((shape, 1) for shape in LARGE_SAMPLE_SHAPES)
    for shape, normalized in (*SAMPLE_SHAPES, *large):
        for finish in finishes(op, "relu"):
            make = drawn(op, shape, dtype, normalized=normalized, **finish)
            yield Case(described(shape, {"axes": normalized}, finish), make)


def _empty(op: str, dtype: torch.dtype) -> Iterator[Case]:
    """No sample: an empty output, gradients of zero for the parameters, running statistics as they were."""
    shapes = [(0, 6, 5), (0, 6, 3, 4), (0, 6)]
    if op == "instance_norm":
        shapes.pop()  # refused: one position
    if op == "batch_norm":
        shapes.append((3, 6, 0))
    for shape in shapes:
        for mode in modes(op):
            for finish in finishes(op):
                yield Case(described(shape, mode, finish), drawn(op, shape, dtype, **mode, **finish))


def _many_samples(op: str, dtype: torch.dtype) -> Iterator[Case]:
    """Sums over many samples: one that is kept in bfloat16 stops growing after 256 terms of a size."""
    for parameters in (dtype, torch.float32):
        given = dict.fromkeys(("weight", "bias"), parameters)
        for mode in modes(op):
            make = drawn(op, (600, 4, 2), dtype, dtypes=given, **mode)
            yield Case(described("many", parameters, mode), make)
