"""Activations: the derivative at a kink, which the other tests leave out, and every activation by its name."""

from __future__ import annotations

import pytest
import torch

from gammabeta.activations import activate, derivative
from gammabeta.proof.call import ACTIVATIONS
from gammabeta.proof.check import assert_conforms
from gammabeta.proof.operations import ADD_OPS, DTYPES, OPS, modes
from gammabeta.proof.random_call import random_call


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a])
def test_at_a_kink_the_derivative_is_torch_s(activation: str) -> None:
    """Exactly at the kinks."""
    z = torch.tensor([-7.0, -3.0, -1.0, -0.0, 0.0, 1.0, 3.0, 6.0, 7.0], dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(activate(z, activation, 0.2).sum(), z)
    torch.testing.assert_close(derivative(z.detach(), activation, 0.2), wanted, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a])
def test_every_activation(activation: str, route: str) -> None:
    for op in OPS:
        if op not in ADD_OPS:
            for dtype in DTYPES:
                settings = {**modes(op)[0], "activation": activation, "activation_slope": 0.2}
                assert_conforms(random_call(op, (6, 6, 9), dtype, residual=True, scale=3.0, **settings), route)
