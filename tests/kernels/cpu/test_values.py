"""Values on which kernels are known to fail: large means, no and tiny spread, the ends of a dtype's range, NaN."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from tests.kernels.cpu.op_call import (
    FINISHED,
    MODES,
    OVER_CHANNELS,
    assert_equals_reference,
    by_kernel,
    mask_of,
    op_call,
    sample_axes,
)
from torch import Tensor

from gammabeta.proof.call import Call
from gammabeta.proof.operations import DTYPES

WITH_STATISTICS = tuple(mode for mode in MODES if mode != "channel_apply")
CENTERED = tuple(mode for mode in WITH_STATISTICS if "rms" not in mode)


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def layouts(mode: str) -> tuple[Callable[[Tensor], Tensor], ...]:
    return (Tensor.contiguous, channels_last) if mode in OVER_CHANNELS else (Tensor.contiguous,)


def shape(mode: str) -> tuple[int, ...]:
    return (5, 6, 131) if mode in OVER_CHANNELS else (7, 131)


def parts(call: Call, x: Tensor) -> Tensor:
    """Return x as (statistics, values)."""
    if call.op == "batch_norm":
        return x.movedim(1, 0).flatten(1)
    samples, channels, groups = sample_axes(call)
    return x.flatten(0, samples - 1).reshape(x.shape[:samples].numel() * groups, -1) if channels else x


@pytest.mark.parametrize("mean", [1e6, -1e6, 1e4])
@pytest.mark.parametrize("mode", CENTERED)
def test_variance_at_a_large_mean(mode: str, mean: float) -> None:
    """Mean 10⁶, spread 1: the variance is right to 1e-5 of itself; one pass in float32 would lose it entirely."""
    for size, layout in itertools.product(((9, 4, 1025), (3, 4, 70_001)), layouts(mode)):
        call = op_call(mode, size, layout=layout)
        x = layout(mean + torch.randn(size, generator=torch.Generator().manual_seed(3)))
        call = call.with_tensors(input=x)
        results = by_kernel(call)
        total = results.compared.get("total", call.input)
        wanted = parts(call, total.double()).var(1, correction=0)
        assert results.statistics is not None
        got = results.statistics[1].double().flatten()
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)
        assert_equals_reference(call, results=results)


@pytest.mark.parametrize("first", [1e30, -300.0, 1e-30])
@pytest.mark.parametrize("mode", ["channel_norm", "group", "instance"])
def test_a_first_value_unlike_the_rest(mode: str, first: float) -> None:
    """Outliers in front: a kernel that takes deviations from the first value, or from a guess, must correct for it."""
    for dtype, layout in itertools.product((torch.float32, torch.bfloat16), layouts(mode)):
        call = op_call(mode, (3, 4, 4099), dtype, mean=0.0, layout=layout, dtypes={"weight": torch.float32})
        if abs(first) > 1e10:  # its square is beyond float32: float64 only
            call = op_call(mode, (3, 4, 4099), torch.float64, mean=0.0, layout=layout)
        x = call.input.clone()
        x[:, :, 0] = first
        assert_equals_reference(call.with_tensors(input=x), f"first {first}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", CENTERED)
def test_constant(mode: str, dtype: torch.dtype) -> None:
    """No spread: the variance is 0, not the square of a rounding, and y is exactly the bias."""
    shapes = [shape(mode), (19, 6)]
    for value, layout, size in itertools.product((0.0, 0.1, 1 / 3, 3.0, -1000.0, 6e4), layouts(mode), shapes):
        call = op_call(mode, size, dtype, layout=layout)
        tensors = {"input": torch.full_like(call.input, value)}
        if "residual" in call.tensors:
            tensors["residual"] = torch.zeros_like(call.input)
        call = call.with_tensors(**tensors)
        results = by_kernel(call)
        mean, var, _ = results.statistics  # type: ignore[misc]
        assert torch.equal(mean, torch.full_like(mean, call.input.flatten()[0].item())), f"constant {value}"
        assert torch.equal(var, torch.zeros_like(var)), f"constant {value}: variance {var.max().item()}"
        bias = call.tensors["bias"].to(dtype)  # type: ignore[union-attr]
        bias = bias.reshape(1, -1, *(1,) * (len(size) - 2)) if mode in OVER_CHANNELS else bias
        assert torch.equal(results.compared["output"], bias.expand(size)), f"constant {value}"
        assert_equals_reference(call, f"constant {value}", results)


@pytest.mark.parametrize("mode", MODES)
def test_small_and_subnormal(mode: str) -> None:
    """Down to the smallest numbers: nothing that matters beside an equally small ε is flushed to zero."""
    spreads = {
        torch.float64: (1e-150, 1e-300), torch.float32: (1e-15, 1e-18), torch.bfloat16: (1e-15, 1e-18),
        torch.float16: (1e-4, 1e-6),
    }  # fmt: skip
    for dtype, layout in itertools.product(DTYPES, layouts(mode)):
        for spread in spreads[dtype]:
            wide = torch.promote_types(dtype, torch.float32)
            given = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), wide)
            eps = 1e-30 if wide == torch.float32 else 1e-290
            call = op_call(
                mode, shape(mode), dtype, mean=0.0, std=spread, eps=eps, layout=layout, dtypes=given,
                scale=1e-3 if dtype == torch.float16 else 1.0,  # keeps the gradient by x in range
            )  # fmt: skip
            if spread**2 > (1e-35 if wide == torch.float32 else 1e-280):  # where squares keep their precision
                assert_equals_reference(call, f"spread {spread}")
            else:
                assert not by_kernel(call).compared["output"].isnan().any()


@pytest.mark.parametrize("mode", MODES)
def test_large_in_16_bits(mode: str) -> None:
    """Values up to 6e4, whose sums and squares are beyond float16 and must be in float32."""
    for dtype, layout in itertools.product((torch.float16, torch.bfloat16), layouts(mode)):
        given = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), torch.float32)
        call = op_call(mode, shape(mode), dtype, layout=layout, dtypes=given)
        x = torch.where(call.input > 0.5, 6e4, -6e4).to(dtype)
        tensors = {"input": x}
        if "residual" in call.tensors:
            tensors["residual"] = torch.zeros_like(x)
        if mode == "channel_apply":
            tensors["running_var"] = torch.full((6,), 3.6e9)
        assert_equals_reference(call.with_tensors(**tensors))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", FINISHED)
def test_what_is_not_finite_stays_in_its_statistic(mode: str, value: float) -> None:
    """Other channels (samples, groups) are unchanged, bit by bit, in every result; its own are not finite."""
    for dtype, layout, activation in itertools.product((torch.float32, torch.bfloat16), layouts(mode), (None, "silu")):
        size = (4, 6, 131)
        call = op_call(mode, size, dtype, layout=layout, residual=True, activation=activation)
        x = call.input.clone()
        x[1, 2, 70] = value
        touched = torch.zeros(size, dtype=torch.bool)
        where = {
            "channel_norm": (slice(None), 2), "channel_apply": (1, 2, 70),
            "instance": (1, 2), "group": (1, slice(2, 4)),
        }  # fmt: skip
        touched[where.get(mode, (1, 2))] = True
        spoilt, clean = by_kernel(call.with_tensors(input=x)), by_kernel(call)
        for name, result in clean.compared.items():
            if result.shape == x.shape:
                assert torch.equal(spoilt.compared[name][~touched], result[~touched]), f"{name} {layout} {dtype}"
            elif mode in OVER_CHANNELS:
                others = [c for c in range(6) if not touched[:, c].any()]
                assert torch.equal(spoilt.compared[name][others], result[others]), f"{name} {layout} {dtype}"
        if not (mode in ("channel_apply", "rms") and math.isinf(value)):  # where ∞ has a limit
            assert spoilt.compared["output"][1, 2, 70].isnan() or activation == "silu"
        if spoilt.statistics is not None and mode == "channel_norm":
            mean, var, count = spoilt.statistics
            assert not (mean[2].isfinite() and var[2].isfinite())
            assert torch.equal(count, clean.statistics[2])  # type: ignore[index]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
@pytest.mark.parametrize("mode", FINISHED)
def test_what_is_masked_out_has_no_part(mode: str, value: float) -> None:
    """Whatever x, residual and gradient contain there: every result has the same bits, and zeros there."""
    for dtype, layout in itertools.product((torch.float32, torch.bfloat16), layouts(mode)):
        size = (4, 6, 131)
        kinds = (size[0], size[2]) if mode in OVER_CHANNELS else size[:2]
        random = torch.rand(kinds, generator=torch.Generator().manual_seed(0)) < 0.6
        sample = random.clone()
        sample[2] = False  # all of one sample
        padding = torch.arange(kinds[1]) < torch.tensor([[kinds[1]], [2], [0], [3]])
        for mask in (random, sample, padding, torch.zeros_like(random), random[:, :1].expand(kinds)):
            for activation, residual in ((None, False), ("silu", True)):
                call = op_call(
                    mode, size, dtype, mask=mask, residual=residual, activation=activation, layout=layout
                )  # fmt: skip
                assert_equals_reference(call, f"mask {value}")
                out = ~mask_of(call)  # type: ignore[operator]
                out = out.unsqueeze(1 if mode in OVER_CHANNELS else 2).expand(size)

                def spoil(t: Tensor, out: Tensor = out) -> Tensor:
                    return t.clone().masked_fill_(out, value)  # with t's strides

                names = ("input", "residual") if residual else ("input",)
                tensors = {name: spoil(call.tensors[name]) for name in names}  # type: ignore[arg-type]
                gradients = tuple(map(spoil, call.gradients))
                spoilt = Call(call.op, {**call.tensors, **tensors}, call.settings, gradients)
                clean, dirty = by_kernel(call).tensors(), by_kernel(spoilt).tensors()
                for name, result in clean.items():
                    assert torch.equal(dirty[name], result), f"{name} {dtype}"
                    if result.shape == size:
                        assert not result[out].any(), name


def test_all_masked_channels_and_samples_have_count_0() -> None:
    for mode in ("channel_norm", "group", "instance"):
        mask = torch.zeros(4, 131, dtype=torch.bool)
        if mode != "channel_norm":
            mask[1:] = True
        results = by_kernel(op_call(mode, (4, 6, 131), mask=mask))
        empty = [statistic if mode == "channel_norm" else statistic[0] for statistic in results.statistics or ()]
        assert len(empty) == 3
        for statistic in empty:
            assert not statistic.any(), mode
        for name, result in results.compared.items():
            part = result if mode == "channel_norm" else result[:1]
            assert not part.any() or (name.endswith(("weight", "bias")) and mode != "channel_norm"), f"{mode} {name}"
