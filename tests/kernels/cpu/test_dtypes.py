"""Any mix of dtypes of input, parameters, residual, gradient and given statistics."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from tests.kernels.cpu.op_call import (
    FINISHED,
    MODES,
    OVER_CHANNELS,
    assert_equals_reference,
    by_kernel,
    by_reference,
    op_call,
)

from gammabeta.proof.call import RUNNING, Call
from gammabeta.proof.magnitudes import magnitudes
from gammabeta.proof.operations import ADD_OPS, DTYPES

SHAPE = (5, 6, 37)


def layouts(mode: str) -> list[dict[str, object]]:
    """Contiguous, and for the channel norms also channels_last, which is another kernel."""
    return [{}, {"layout": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)}] if "channel" in mode else [{}]


@pytest.mark.parametrize("x", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_input_residual_and_parameters(mode: str, x: torch.dtype) -> None:
    residuals = DTYPES if MODES[mode][0] in ADD_OPS else (*DTYPES, None)
    for residual, parameters, layout in itertools.product(residuals, DTYPES, layouts(mode)):
        dtypes = {"weight": parameters, "bias": parameters}
        dtypes |= {} if residual is None else {"residual": residual}
        finish = {"activation": "silu"} if mode in FINISHED else {}
        call = op_call(mode, SHAPE, x, dtypes=dtypes, residual=residual is not None, **finish, **layout)
        assert_equals_reference(call)


@pytest.mark.parametrize("x", DTYPES)
@pytest.mark.parametrize("mode", [mode for mode in MODES if "rms" not in mode])
def test_weight_and_bias_of_two_dtypes(mode: str, x: torch.dtype) -> None:
    """Also with only one of the two."""
    for weight, bias in itertools.permutations(DTYPES, 2):
        call = op_call(mode, SHAPE, x, dtypes={"weight": weight, "bias": bias})
        assert_equals_reference(call)
        assert_equals_reference(call.with_tensors(weight=None))
        assert_equals_reference(call.with_tensors(bias=None))


@pytest.mark.parametrize("x", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_gradient(mode: str, x: torch.dtype) -> None:
    """Autograd gives the gradient of y in y's dtype; the op takes it in any."""
    for gradient, masked in itertools.product(DTYPES, (False, True)):
        if mode not in FINISHED and masked:
            continue
        size = (SHAPE[0], SHAPE[2]) if MODES[mode][0] not in ("layer_norm", "rms_norm") else SHAPE[:2]
        mask = torch.rand(size, generator=torch.Generator().manual_seed(2)) < 0.7 if masked else None
        call = with_gradients_of(op_call(mode, SHAPE, x, mask=mask), gradient)
        assert_equals_reference(call, f"gradient {gradient}")


def with_gradients_of(call: Call, dtype: torch.dtype) -> Call:
    return replace(call, gradients=tuple(g.to(dtype) for g in call.gradients))


@pytest.mark.parametrize("x", DTYPES)
def test_given_statistics(x: torch.dtype) -> None:
    for mean, var in itertools.product(DTYPES, DTYPES):
        dtypes = dict(zip(RUNNING, (mean, var), strict=True))
        call = op_call("channel_apply", SHAPE, x, dtypes=dtypes, residual=True, activation="relu")
        assert_equals_reference(call, f"statistics {mean} {var}")


@pytest.mark.parametrize("mode", MODES)
def test_a_long_sum_in_16_bits(mode: str) -> None:
    """15,000 and more terms of equal size: a sum in 16 bits stops growing at some hundred.

    A float32 sum of equal terms rounds to the same side each time, so its error grows with the number of terms in one
    accumulator. Accumulators of some hundred terms stay far below 1e-4 of the total.
    """
    shape = (3000, 4, 5) if mode in OVER_CHANNELS else (3000, 37)
    for dtype in (torch.bfloat16, torch.float16):
        call = op_call(mode, shape, dtype, dtypes=dict.fromkeys(("weight", "bias", *RUNNING), torch.float32))
        call = replace(call, gradients=tuple(torch.ones_like(g) for g in call.gradients))
        got, wanted, sizes = by_kernel(call).compared, by_reference(call).compared, magnitudes(call)
        for name in ("grad weight", "grad bias"):
            if name in got:
                assert ((got[name] - wanted[name]).abs() <= 1e-4 * sizes[name].arithmetic).all(), name
