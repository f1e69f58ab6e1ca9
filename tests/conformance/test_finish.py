"""Residual and activation: every activation, with and without a residual, in every operation that takes them."""

from __future__ import annotations

import pytest
import torch
from tests.conformance.call import ACTIVATIONS, CHANNEL_OPS, DTYPES, SAMPLE_OPS, random_call
from tests.conformance.check import assert_conforms

from gammabeta.activations import activate, derivative

MODES = [
    *((op, {}) for op in (*CHANNEL_OPS, *SAMPLE_OPS)),
    ("batch_norm", {"training": True}),
    ("instance_norm", {"use_input_stats": False}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str | None, residual: bool, dtype: torch.dtype, route: str) -> None:
    for op, mode in MODES:
        settings = {**mode, "activation": activation, "activation_slope": 0.2}
        # Wide enough to reach both kinks of relu6 and hardswish and their flat ends.
        assert_conforms(random_call(op, (6, 6, 9), dtype, residual=residual, scale=3.0, **settings), route)


@pytest.mark.parametrize("affine", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_scale_or_shift(affine: tuple[bool, bool], dtype: torch.dtype, route: str) -> None:
    weight, bias = affine
    for op, mode in MODES:
        for residual, activation in ((False, None), (True, "gelu")):
            call = random_call(
                op, (6, 6, 9), dtype, weight=weight, bias=bias, residual=residual, activation=activation, **mode
            )
            assert_conforms(call, route)


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a])
def test_at_a_kink_the_derivative_is_torch_s(activation: str) -> None:
    """Exactly at the kinks, which the other tests leave out."""
    z = torch.tensor([-7.0, -3.0, -1.0, -0.0, 0.0, 1.0, 3.0, 6.0, 7.0], dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(activate(z, activation, 0.2).sum(), z)
    torch.testing.assert_close(derivative(z.detach(), activation, 0.2), wanted, rtol=1e-14, atol=1e-15)


def test_a_kink_is_met_exactly_where_the_input_is_constant(route: str) -> None:
    """x̂ is 0 there, z is the bias, and the bias for hardswish is at its kinks."""
    for activation, bias in (
        ("relu", 0.0),
        ("relu6", 6.0),
        ("hardswish", -3.0),
        ("hardswish", 3.0),
        ("leaky_relu", 0.0),
    ):
        call = random_call("batch_norm", (4, 3, 5), torch.float64, training=True)
        call = call.with_tensors(
            input=torch.full((4, 3, 5), 2.0, dtype=torch.float64), bias=torch.full((3,), bias, dtype=torch.float64)
        ).with_settings(activation=activation)
        assert_conforms(call, route, f"bias {bias}")
