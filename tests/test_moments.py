"""Moments: against NumPy in float64, and as an algebra."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gammabeta import Moments
from gammabeta.moments import statistics_dtype

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
AXES: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,), (-1,), (0, 2), (-1, 0), (1, 2), (0, 1, 2))

# Relative to Σ|x|/n for the mean and to Σ(x − mean)² for m2, in the arithmetic's dtype, float32 for 16 bits.
ROUNDINGS = 4
DECIMALS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-24, torch.float16: 2.0**-24}


def normal(*shape: int, seed: int = 0, mean: float = 0.0, std: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * std + mean


def assert_equal_numpy(m: Moments, x: Tensor, axes: Sequence[int], mask: Tensor | None = None) -> None:
    values = x.double().numpy()
    counts = np.ones(values.shape, bool) if mask is None else np.broadcast_to(mask.numpy(), values.shape)
    masked = np.ma.masked_array(values, ~counts)
    axis = tuple(axes)
    n = counts.sum(axis)
    mean = np.ma.filled(masked.mean(axis), 0.0)
    m2 = np.ma.filled(masked.var(axis) * n, 0.0)
    scale = np.ma.filled(np.abs(masked).mean(axis), 0.0)
    u = DECIMALS[x.dtype] * ROUNDINGS
    assert m.mean.dtype == m.m2.dtype == statistics_dtype(x.dtype)
    assert m.count.dtype == torch.int64
    assert m.mean.shape == m.m2.shape == n.shape
    np.testing.assert_array_equal(m.count.expand(m.mean.shape).numpy(), n)
    np.testing.assert_array_less(np.abs(m.mean.double().numpy() - mean), u * scale + 1e-300)
    np.testing.assert_array_less(np.abs(m.m2.double().numpy() - m2), 2 * u * m2 + (u * scale) ** 2 * n + 1e-300)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", AXES)
def test_of_equals_numpy(axes: tuple[int, ...], dtype: torch.dtype) -> None:
    for mean in (0.0, 3.0, -40.0):
        x = normal(5, 6, 7, mean=mean).to(dtype)
        assert_equal_numpy(Moments.of(x, axes), x, axes)
        assert_equal_numpy(Moments.of(x.transpose(0, 2), axes), x.transpose(0, 2), axes)
    one = Moments.of(x, axes[0])
    for number, tuple_ in zip(
        (one.mean, one.m2), (Moments.of(x, axes[:1]).mean, Moments.of(x, axes[:1]).m2), strict=True
    ):
        assert torch.equal(number, tuple_)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", AXES)
def test_masks(axes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of x's shape, broadcast over any of its axes, of fewer axes; with whole sets masked out, and NaN where masked."""
    x = normal(5, 6, 7, mean=2.0).to(dtype)
    for shape in ((5, 6, 7), (5, 1, 7), (1, 6, 1), (7,), (6, 1), (1, 1, 1)):
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) < 0.6
        assert_equal_numpy(Moments.of(x, axes, mask), x, axes, mask)
    mask = torch.ones(5, 6, 7, dtype=torch.bool)
    mask[2], mask[:, 3], mask[..., 4] = False, False, False
    spoilt = x.masked_fill(~mask, math.nan)
    assert_equal_numpy(Moments.of(spoilt, axes, mask), x, axes, mask)


def test_large_mean_and_small_spread() -> None:
    """With mean 1e6 and spread 1 (or 1e4 and 1e-2) in float32 the variance, promised to 1e-3, is right to 1e-6."""
    for mean, std in ((1e6, 1.0), (1e4, 1e-2), (-1e6, 1.0)):
        for shape, axes in (((4096, 8), (0,)), ((32, 8, 513), (0, 2)), ((100_000, 1), (0,))):
            x = normal(*shape, mean=mean, std=std).float()
            m = Moments.of(x, axes)
            wanted = x.double().var(axes, correction=0)
            error = ((m.var() - wanted) / wanted).abs().max()
            assert error < 1e-6  # of the two-pass variance; in one pass of E[x²] − E[x]² it is over 1
            # Of a mean of 1e6 a part keeps 1/16 in float32, which is as much as the means of the parts differ by.
            merged = Moments.merge_all([Moments.of(part, axes) for part in x.split(x.shape[0] // 7, dim=0)])
            assert ((merged.var() - wanted) / wanted).abs().max() < 5e-3


def test_one_pass_would_not_do() -> None:
    x = normal(4096, mean=1e6).float()
    one_pass = x.square().mean() - x.mean().square()
    assert abs(one_pass - 1) > 1e-3


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 5), (4, 3, 0)])
def test_empty_input_is_neutral(shape: tuple[int, ...]) -> None:
    axes = (0, *range(2, len(shape)))
    nothing = Moments.of(torch.empty(shape), axes)
    assert nothing.count.tolist() == [0, 0, 0]
    assert nothing.mean.tolist() == nothing.m2.tolist() == [0.0, 0.0, 0.0]
    assert_neutral(nothing)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_fully_masked_input_is_neutral(value: float) -> None:
    x = torch.full((4, 3), value)
    nothing = Moments.of(x, 0, torch.zeros(4, 3, dtype=torch.bool))
    assert nothing.mean.tolist() == nothing.m2.tolist() == [0.0, 0.0, 0.0]
    assert_neutral(nothing)


def assert_neutral(nothing: Moments) -> None:
    something = Moments.of(normal(5, 3, mean=7.0).float(), 0)
    for both in (nothing.merge(something), something.merge(nothing)):
        assert torch.equal(both.count, something.count)
        assert torch.equal(both.mean, something.mean)
        assert torch.equal(both.m2, something.m2)
    neither = nothing.merge(nothing)
    assert neither.count.tolist() == [0, 0, 0]
    assert neither.mean.tolist() == neither.m2.tolist() == [0.0, 0.0, 0.0]
    assert nothing.var().isnan().all()


def test_empty_in_some_sets_only() -> None:
    x, mask = normal(6, 3).float(), torch.ones(6, 3, dtype=torch.bool)
    mask[:, 1], mask[1:, 2] = False, False
    some, rest = Moments.of(x, 0, mask), Moments.of(normal(6, 3, seed=1).float(), 0)
    merged = some.merge(rest)
    assert merged.count.tolist() == [12, 6, 7]
    assert merged.mean[1] == rest.mean[1]
    assert merged.m2[1] == rest.m2[1]
    assert some.var(0)[2] == 0
    assert some.var(1)[2].isnan()


def test_var() -> None:
    x = normal(9, 4)
    m = Moments.of(x, 0)
    torch.testing.assert_close(m.var(), x.var(0, correction=0), rtol=1e-14, atol=0)
    torch.testing.assert_close(m.var(1), x.var(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(m.var(correction=8), x.var(0, correction=8), rtol=1e-14, atol=0)
    assert m.var(9).isnan().all()
    assert m.var(10).isnan().all()
    assert Moments.of(x[:1], 0).var().tolist() == [0.0] * 4


def test_what_is_not_finite_shows() -> None:
    x = normal(5, 3).float()
    x[1, 0], x[2, 1] = math.nan, math.inf
    m = Moments.of(x, 0)
    assert m.mean.isfinite().tolist() == [False, False, True]
    assert m.m2.isfinite().tolist() == [False, False, True]


def test_merge_all_is_the_whole() -> None:
    x = normal(64, 3, 5, mean=3.0)
    whole = Moments.of(x, (0, 2))
    for sizes in ([64], [1] * 64, [1, 63], [30, 4, 30], [0, 10, 0, 54, 0]):
        parts = [Moments.of(part, (0, 2)) for part in x.split(sizes)]
        merged = Moments.merge_all(iter(parts))  # any iterable, once
        assert torch.equal(merged.count, whole.count)
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(merged.m2, whole.m2, rtol=1e-13, atol=0)


def test_the_order_matters_by_rounding_only() -> None:
    parts = [Moments.of(normal(n, 4, seed=n, mean=5.0).float(), 0) for n in (3, 1, 8, 40)]
    merged = [Moments.merge_all(order) for order in itertools.permutations(parts)]
    for other in merged[1:]:
        assert torch.equal(other.count, merged[0].count)
        torch.testing.assert_close(other.mean, merged[0].mean, rtol=4 * 2**-24, atol=0)
        torch.testing.assert_close(other.m2, merged[0].m2, rtol=16 * 2**-24, atol=0)
    again = Moments.merge_all(parts)
    assert torch.equal(again.mean, merged[0].mean)
    assert torch.equal(again.m2, merged[0].m2)


def test_merging_keeps_the_variance_between_the_parts() -> None:
    low, high = Moments.of(torch.full((10, 1), -1.0), 0), Moments.of(torch.full((10, 1), 1.0), 0)
    assert low.merge(high).var().item() == 1.0


def test_merging_many_parts_does_not_drift() -> None:
    """10000 parts in float32, merged in pairs, against float64."""
    x = normal(10_000, 4, mean=10.0).float()
    merged = Moments.merge_all([Moments.of(part, 0) for part in x.split(1)])
    wanted = x.double().var(0, correction=0)
    torch.testing.assert_close(merged.mean.double(), x.double().mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(merged.var().double(), wanted, rtol=1e-5, atol=0)


finite = st.floats(-100, 100, width=32)
three_parts = st.tuples(*[st.lists(finite, min_size=0, max_size=12) for _ in range(3)])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(three_parts)
def test_merging_is_associative_and_commutative(parts: tuple[list[float], list[float], list[float]]) -> None:
    a, b, c = (Moments.of(torch.tensor(part, dtype=torch.float64), 0) for part in parts)
    left, right, turned = a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(b).merge(a)
    values = torch.tensor([v for part in parts for v in part], dtype=torch.float64)
    scale = float(values.abs().max()) if len(values) else 0.0
    for m in (left, right, turned):
        assert int(m.count) == len(values)
        if len(values):
            # Each merge rounds the mean to the scale of the values, and m2 to the scale of their squares.
            assert abs(float(m.mean - values.mean())) <= 1e-15 * 8 * scale
            assert abs(float(m.m2 - (values - values.mean()).square().sum())) <= 1e-15 * 16 * len(values) * scale**2
        else:
            assert float(m.mean) == float(m.m2) == 0.0


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(finite, min_size=1, max_size=30), finite, st.sampled_from([-4.0, 0.5, 2.0, 1024.0]))
def test_shift_and_scale(values: list[float], shift: float, scale: float) -> None:
    """Moments of a·x + b: mean a·mean + b, m2 a²·m2, to the rounding of a·x + b itself."""
    x = torch.tensor(values, dtype=torch.float64)
    m, moved = Moments.of(x, 0), Moments.of(x * scale + shift, 0)
    size = abs(scale) * float(x.abs().max()) + abs(shift)
    assert abs(float(moved.mean - (scale * m.mean + shift))) <= 1e-15 * 8 * size
    assert abs(float(moved.m2 - scale**2 * m.m2)) <= 1e-15 * 16 * len(values) * size**2
    assert float(moved.m2) >= 0


def test_errors() -> None:
    x = torch.zeros(4, 3, 5)
    with pytest.raises(TypeError) as error:
        Moments.of(torch.zeros(3, dtype=torch.int64), 0)
    assert str(error.value) == (
        "Moments.of: expected x of a floating point dtype, got torch.int64: convert it with x.float()."
    )
    with pytest.raises(TypeError) as error:
        Moments.of(x, 0, torch.ones(4, 3, 5))
    assert str(error.value) == (
        "Moments.of: expected mask of dtype torch.bool, got torch.float32: convert it with mask.bool()."
    )
    for shape in ((4, 3, 4), (4,), (2, 4, 3, 5), (1, 4, 3, 5)):
        with pytest.raises(ValueError, match=r"^Moments\.of") as raised:
            Moments.of(x, 0, torch.ones(shape, dtype=torch.bool))
        assert str(raised.value) == (
            f"Moments.of: expected mask broadcastable to x (4, 3, 5), got {shape}: "
            "True marks the values of x that count."
        )
    with pytest.raises(ValueError, match=r"^Moments\.merge_all") as raised:
        Moments.merge_all([])
    assert str(raised.value) == "Moments.merge_all: expected at least one Moments, got none."
