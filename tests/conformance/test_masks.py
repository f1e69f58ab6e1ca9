"""Masks: masked values enter no statistic, get no gradient and are zero in the output."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.conformance.call import CHANNEL_OPS, DTYPES, SAMPLE_OPS, Call, masked_elements, random_call, run
from tests.conformance.check import assert_close, assert_conforms, computed_by
from tests.conformance.oracle import expected
from torch import Tensor

SHAPE = (5, 6, 7)
MASKED_OPS = (*CHANNEL_OPS, *SAMPLE_OPS)


def modes(op: str) -> list[dict[str, object]]:
    modes: dict[str, list[dict[str, object]]] = {
        "batch_norm": [{"training": True}, {"training": False}],
        "instance_norm": [{"use_input_stats": True}, {"use_input_stats": False}],
    }
    return modes.get(op, [{}])


def without_normalized(op: str, shape: tuple[int, ...] = SHAPE) -> tuple[int, ...]:
    return (shape[0], *shape[2:]) if op in CHANNEL_OPS else shape[:-1]


def masks(op: str) -> dict[str, Tensor]:
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", masks("batch_norm"))
@pytest.mark.parametrize("op", MASKED_OPS)
def test_every_mask(op: str, kind: str, dtype: torch.dtype, route: str) -> None:
    mask = masks(op)[kind]
    for mode in modes(op):
        for finish in ({"residual": True}, {"residual": True, "activation": "silu"}):
            call = random_call(op, SHAPE, dtype, mask=mask, **mode, **finish)
            assert_conforms(call, route, f"mask {kind}")
            counts = masked_elements(call)
            assert counts is not None
            assert not run(call)["output"][~counts].any()


@pytest.mark.parametrize("op", MASKED_OPS)
def test_images_and_volumes(op: str, route: str) -> None:
    for shape in ((3, 6, 4, 5), (2, 6, 3, 2, 4)):
        mask = torch.rand(without_normalized(op, shape), generator=torch.Generator().manual_seed(0)) < 0.6
        for mode in modes(op):
            assert_conforms(random_call(op, shape, mask=mask, residual=True, activation="gelu", **mode), route)
    if op in SAMPLE_OPS:
        for normalized, rows in ((2, mask[..., 0]), (3, mask[..., 0, 0]), (4, torch.tensor([True, False]))):
            assert_conforms(random_call(op, (2, 6, 3, 2, 4), normalized=normalized, mask=rows), route)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
@pytest.mark.parametrize("kind", ["random", "padding", "a sample", "everything"])
@pytest.mark.parametrize("op", MASKED_OPS)
def test_what_is_masked_out_does_not_leak(op: str, kind: str, value: float, route: str) -> None:
    """Whatever is in the masked places of x, of the residual and of the gradient, the results have the same bits."""
    mask = masks(op)[kind]
    for mode in modes(op):
        for finish in ({}, {"activation": "silu"}):
            call = random_call(op, SHAPE, mask=mask, residual=True, **mode, **finish)
            counts = masked_elements(call)
            assert counts is not None
            tensors = {name: call.tensors[name].masked_fill(~counts, value) for name in ("input", "residual")}  # type: ignore[union-attr]
            spoilt = replace(call.with_tensors(**tensors), gradients=(call.gradients[0].masked_fill(~counts, value),))
            clean, dirty = run(call), run(spoilt)
            for name, result in clean.items():
                assert torch.equal(dirty[name], result), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", MASKED_OPS)
def test_appended_padding_changes_nothing(op: str, dtype: torch.dtype, route: str) -> None:
    """The same numbers with more padding behind them equal the oracle's of the shorter ones, to rounding."""
    axis = 2 if op in CHANNEL_OPS else 1
    mask = masks(op)["padding"]
    for mode in modes(op):
        for finish in ({}, {"residual": True, "activation": "silu"}):
            call = random_call(op, SHAPE, dtype, mask=mask, **mode, **finish)
            padded = pad(call, axis, 9)
            results = run(padded)
            for name, result in results.items():
                if result.shape == padded.input.shape:
                    assert not result.narrow(axis, SHAPE[axis], 9).any(), name
                    results[name] = result.narrow(axis, 0, SHAPE[axis])
            assert_close(call, results, expected(call), computed_by(call, route), "with padding appended")


def pad(call: Call, axis: int, count: int) -> Call:
    def longer(t: Tensor, axis: int, value: float) -> Tensor:
        shape = list(t.shape)
        shape[axis] = count
        return torch.cat([t, t.new_full(shape, value)], axis)

    tensors = {name: longer(t, axis, 3.0) for name in ("input", "residual") if (t := call.tensor(name)) is not None}
    mask = call.tensors["mask"]
    assert mask is not None
    return replace(
        call.with_tensors(mask=longer(mask, 1, False), **tensors),
        gradients=tuple(longer(g, axis, 2.0) for g in call.gradients),
    )


@pytest.mark.parametrize("op", MASKED_OPS)
def test_without_padding_the_rest_is_the_unmasked_norm(op: str, route: str) -> None:
    """The masked places cut off: one operation with a mask equals another without."""
    axis = 2 if op in CHANNEL_OPS else 1
    mask = torch.arange(SHAPE[axis]) < 4
    for mode in modes(op):
        call = random_call(op, SHAPE, mask=mask, residual=True, **mode)
        tensors = {name: call.tensors[name].narrow(axis, 0, 4) for name in ("input", "residual")}  # type: ignore[union-attr]
        short = replace(
            call.with_tensors(mask=None, **tensors), gradients=(call.gradients[0].narrow(axis, 0, 4),)
        )  # fmt: skip
        results = run(call)
        for name in ("output", "grad input", "grad residual"):
            results[name] = results[name].narrow(axis, 0, 4)
        assert_close(short, results, expected(short), "ops")
