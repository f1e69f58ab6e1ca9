"""Scale, shift, residual, activation and mask around the norm, in every combination."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tests.kernels.cpu.op_call import FINISHED, MODES, OVER_CHANNELS, assert_equals_reference, by_kernel, op_call

from gammabeta.proof.call import ACTIVATIONS
from gammabeta.proof.operations import DTYPES

NAN, INF = math.nan, math.inf

# Rows longer than a vector and not a multiple of it, few and many of them.
SHAPES = {"channels": [(4, 6, 37), (3, 6, 5, 3)], "last": [(9, 37), (2, 3, 70)]}


def shapes(mode: str) -> list[tuple[int, ...]]:
    return SHAPES["channels" if mode in OVER_CHANNELS else "last"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("mode", FINISHED)
def test_every_combination(mode: str, activation: str | None, dtype: torch.dtype) -> None:
    settings = {"activation": activation, "activation_slope": 0.2, "scale": 3.0}
    for shape, residual, masked in itertools.product(shapes(mode), (False, True), (False, True)):
        size = (shape[0], *shape[2:]) if mode in OVER_CHANNELS else shape[:-1]
        mask = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
        call = op_call(mode, shape, dtype, residual=residual, mask=mask, **settings)
        assert_equals_reference(call, f"residual {residual} mask {masked}")
        if mode in ("channel_norm", "channel_apply") and len(shape) == 4:
            call = op_call(
                mode, shape, dtype, residual=residual, mask=mask,
                layout=lambda t: t.to(memory_format=torch.channels_last), **settings,
            )  # fmt: skip
            assert_equals_reference(call, f"channels_last residual {residual} mask {masked}")


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_without_scale_or_shift(mode: str, dtype: torch.dtype, activation: str | None) -> None:
    finish = {"activation": activation, "residual": activation is not None} if mode in FINISHED else {}
    for weight, bias in itertools.product((False, True), (False, True)):
        for shape in shapes(mode):
            call = op_call(mode, shape, dtype, weight=weight, bias=bias, **finish)
            assert_equals_reference(call, f"weight {weight} bias {bias}")


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a])
def test_far_out(activation: str) -> None:
    """z up to ±100, where a kernel's own exp and erf could overflow or lose their tails."""
    for mode, dtype in itertools.product(FINISHED, DTYPES):
        call = op_call(mode, shapes(mode)[0], dtype, scale=40.0, activation=activation)
        assert_equals_reference(call, activation)


# activation(NaN), (∞), (−∞). By their formulas the three curves are ∞·0 at −∞, and 0 in the limit: both are accepted.
NOT_FINITE = {
    "relu": (NAN, INF, 0.0), "relu6": (NAN, 6.0, 0.0), "leaky_relu": (NAN, INF, -INF),
    "silu": (NAN, INF, None), "hardswish": (NAN, INF, None), "gelu": (NAN, None, None), None: (NAN, INF, -INF),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_goes_through_the_activation(activation: str | None, dtype: torch.dtype) -> None:
    """z = NaN and ±∞ from a residual: fast forms of exp, min and max tend to lose them."""
    call = op_call("channel_apply", (4, 3, 37), dtype, residual=True, activation=activation)
    residual = call.tensors["residual"].clone()  # type: ignore[union-attr]
    for at, value in enumerate((NAN, INF, -INF)):
        residual[at, 1, 11 + at] = value
    y = by_kernel(call.with_tensors(residual=residual)).compared["output"]
    clean = by_kernel(call).compared["output"]
    for at, wanted in enumerate(NOT_FINITE[activation]):
        got = y[at, 1, 11 + at].item()
        if wanted is None:  # torch's vectorized gelu gives NaN for ∞ too
            assert not math.isfinite(got) or (at == 2 and got == 0), f"{got} for z number {at}"
        else:
            assert got == wanted or (math.isnan(got) and math.isnan(wanted)), f"{got}, expected {wanted}"
        y[at, 1, 11 + at] = clean[at, 1, 11 + at]
    assert torch.equal(y, clean), "what is not finite came into other values"


# activation'(NaN), (∞), (−∞), as torch's backward has them; relu6's at NaN differs between torch's own loops.
SLOPES = {"relu": (1, 1, 0), "relu6": (1, 0, 0), "hardswish": (1, 1, 0), None: (1, 1, 1)}


@pytest.mark.parametrize("shape", [(4, 3, 37), (3, 3, 700), (4, 3, 5, 8)], ids=["gathered", "planes", "columns"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", SLOPES)
def test_gradients_where_z_is_not_finite(activation: str | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    call = op_call(
        "channel_apply", shape, dtype, residual=True, activation=activation,
        layout=lambda t: t.contiguous(memory_format=layout),
    )  # fmt: skip
    for value, slope in zip((NAN, INF, -INF), SLOPES[activation], strict=True):
        residual = call.tensors["residual"].clone()  # type: ignore[union-attr]
        residual[1, 2] = value
        got = by_kernel(call.with_tensors(residual=residual)).compared["grad residual"]
        assert torch.equal(got[1, 2], call.gradients[0][1, 2] * slope), f"at z = {value}"
