"""Sizes: around the width of vectors and blocks, one, none, and far larger than a cache."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tests.kernels.cpu.op_call import (
    MODES,
    OVER_CHANNELS,
    OVER_LAST,
    assert_equals_reference,
    by_kernel,
    op_call,
)
from torch import Tensor

from gammabeta.proof.operations import DTYPES

# One less and one more than 4 to 64 elements: a vector of any width, and a few of them unrolled.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 49, 63, 64, 65, 127, 128, 129, 255, 257, 511, 513, 769)


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def roles(mode: str, size: int) -> list[tuple[int, ...]]:
    """Return shapes in which `size` is the number of samples, of channels, of positions."""
    if mode in OVER_CHANNELS:
        return [(size, 3), (5, size), (size, 3, 2), (2, size, 3), (2, 3, size), (1, 2, size), (1, size, 1, 7)]
    return [(size, 3), (3, size), (2, size, 5), (1, size)]


def countable(mode: str, shape: tuple[int, ...]) -> bool:
    """Return whether a statistic is of more than one value. Of one, x̂ is 0, and so is the scale of the tolerances."""
    if mode in OVER_LAST:
        return shape[-1] > 1
    positions = math.prod(shape[2:])
    return {"channel_norm": shape[0] * positions, "instance": positions}.get(mode, 2) > 1


@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("mode", MODES)
def test_widths(mode: str, size: int) -> None:
    """Return a finish that differs from case to case, so that every width meets every finish."""
    activations = (None, "relu", "silu", "gelu")
    for i, (shape, dtype) in enumerate(itertools.product(roles(mode, size), DTYPES)):
        finish = {}
        if mode not in ("add_layer", "add_rms"):
            finish = {"residual": i % 3 == 1, "activation": activations[(i + size) % 4]}
        layouts = (Tensor.contiguous, channels_last) if mode in OVER_CHANNELS else (Tensor.contiguous,)
        for layout in layouts:
            if countable(mode, shape):
                assert_equals_reference(op_call(mode, shape, dtype, layout=layout, **finish))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_one_value_a_statistic(mode: str, dtype: torch.dtype) -> None:
    """x̂ is exactly 0 where the mean is subtracted: y is the bias, the weight gets no gradient, x only rounding."""
    shape = {"channel_norm": (1, 7), "instance": (3, 7, 1)}.get(mode, (3, 7, 1) if mode in OVER_CHANNELS else (7, 1))
    call = op_call(mode, shape, dtype, **({"groups": 7} if mode == "group" else {}))
    results = assert_equals_reference(call)
    if mode in ("channel_apply", "rms", "add_rms"):
        return
    bias = call.tensors["bias"]
    assert bias is not None
    bias = bias.reshape((1, -1, *(1,) * (len(shape) - 2)) if mode in OVER_CHANNELS else (-1,))
    assert torch.equal(results.compared["output"], bias.to(dtype).expand(shape))
    assert not results.compared["grad weight"].any()
    assert not results.statistics[1].any()  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_nothing(mode: str, dtype: torch.dtype) -> None:
    """No samples, no positions, no channels: empty outputs, sums that are 0, statistics of count 0."""
    shapes = [(0, 6, 5), (0, 6), (3, 6, 0), (2, 6, 0, 4)] if mode in OVER_CHANNELS else [(0, 6), (2, 0, 6)]
    for shape, residual in itertools.product(shapes, (False, True)):
        finish = {} if mode in ("add_layer", "add_rms") else {"residual": residual, "activation": "silu"}
        results = by_kernel(op_call(mode, shape, dtype, **finish))
        for name, result in results.compared.items():
            if name in ("grad weight", "grad bias"):
                assert result.shape == (6,)
                assert not result.any(), name
            else:
                assert result.shape == shape
        for statistic in results.statistics or ():
            assert not statistic.any(), "a mean, a variance or a count of nothing"
    if mode in ("channel_norm", "channel_apply"):
        results = by_kernel(op_call(mode, (3, 0, 5), dtype))
        assert results.compared["output"].shape == (3, 0, 5)
        assert results.compared["grad weight"].shape == (0,)


@pytest.mark.parametrize(
    ("mode", "shape", "layout"),
    [
        ("channel_norm", (2, 1, 1500, 1500), Tensor.contiguous),
        ("channel_norm", (2, 2, 1100, 1000), channels_last),
        ("channel_norm", (4_500_000, 1), Tensor.contiguous),
        ("channel_apply", (2, 1, 1500, 1500), Tensor.contiguous),
        ("instance", (1, 1, 2100, 2000), Tensor.contiguous),
        ("group", (1, 2, 1500, 1500), channels_last),
        ("layer", (2, 2_100_000), Tensor.contiguous),
        ("add_rms", (2, 1_100_000), Tensor.contiguous),
    ],
    ids=lambda value: str(value) if isinstance(value, (str, tuple)) else value.__name__,
)
def test_statistics_of_millions(mode: str, shape: tuple[int, ...], layout: object) -> None:
    """More values per statistic than a cache holds, so many that a plain float32 sum would lose digits."""
    settings = {"groups": 1} if mode == "group" else {}
    assert_equals_reference(op_call(mode, shape, layout=layout, mean=3.0, **settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        ("channel_norm", (2, 20_000)), ("channel_norm", (2, 20_000, 1, 1)), ("channel_norm", (4, 4099, 7, 7)),
        ("channel_norm", (1, 64, 56, 57)), ("channel_norm", (513, 3, 1, 1)), ("channel_norm", (20_000, 17)),
        ("channel_norm", (3, 5, 4, 6, 33)), ("channel_apply", (4, 4099, 7, 7)), ("channel_apply", (20_000, 17)),
        ("group", (2, 96, 7, 7)), ("group", (3, 64, 33, 31)), ("instance", (2, 300, 7, 7)),
        ("layer", (20_000, 5)), ("layer", (3, 50_001)), ("rms", (20_000, 5)), ("add_layer", (517, 1027)),
        ("add_rms", (517, 1027)),
    ],
    ids=str,
)  # fmt: skip
def test_shapes_of_networks(mode: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Many channels, few positions, one image, wide and narrow rows: each takes another path in the kernels."""
    finish = {} if mode in ("add_layer", "add_rms") else {"residual": True, "activation": "hardswish"}
    settings = {"groups": 32} if mode == "group" else {}
    for layout in (Tensor.contiguous, channels_last) if mode in OVER_CHANNELS else (Tensor.contiguous,):
        assert_equals_reference(op_call(mode, shape, dtype, layout=layout, **finish, **settings))
