"""The oracle itself, and the table of tolerances."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from gammabeta.proof.call import DIFFERENTIABLE, RUNNING, masked_elements
from gammabeta.proof.operations import DTYPES, OPS
from gammabeta.proof.oracle import expected
from gammabeta.proof.random_call import random_call
from gammabeta.proof.tolerances import ANY, FULL, HALF, TABLE, row

QUANTITIES = ("output", "total", *(f"grad {name}" for name in DIFFERENTIABLE), *RUNNING)
ADDED = ("output", "total", *(f"grad {name}" for name in DIFFERENTIABLE))


def test_every_tolerance_stands_once_and_has_a_reason() -> None:
    used = set()
    for dtype, by, quantity in itertools.product(DTYPES, ANY, QUANTITIES):
        if quantity in (ADDED if by == "added" else set(QUANTITIES) - {"total"}):
            used.add(row(dtype, quantity, by))
    assert used == set(TABLE)
    for entry in TABLE:
        assert len(entry.reason) > 35
        assert set(entry.dtypes) <= {*FULL, *HALF}
    # In exact words: nothing is allowed more than 20 roundings of the arithmetic or 3 of storing in between.
    assert max(entry.arithmetic for entry in TABLE) == 20
    assert max(entry.inside for entry in TABLE) == 1


@pytest.mark.parametrize("op", ["batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"])
def test_masked_outputs_are_those_of_a_formula(op: str) -> None:
    """The gathered values normalized by aten against NumPy's masked arrays: two ways that share no code."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 6, 8)
    mask = torch.rand((3, 8) if "layer" not in op and "rms" not in op else (3, 6), generator=generator) < 0.7
    mode = {"training": True} if op == "batch_norm" else {}
    call = random_call(op, shape, torch.float64, mask=mask, residual=True, activation="relu", **mode)
    valid = masked_elements(call)
    assert valid is not None
    x = np.ma.masked_array(call.input.numpy(), ~valid.numpy())
    per_channel = (1, -1, 1)
    if op == "group_norm":
        x, per_channel = x.reshape(3, 3, 2, 8), (1, 3, 2, 1)
        axes: tuple[int, ...] = (2, 3)
    else:
        axes = {"batch_norm": (0, 2), "instance_norm": (2,)}.get(op, (2,))
        per_channel = per_channel if op in ("batch_norm", "instance_norm") else (1, 1, -1)
    center = 0.0 if op == "rms_norm" else x.mean(axes, keepdims=True)
    spread = np.sqrt((x**2).mean(axes, keepdims=True)) if op == "rms_norm" else x.std(axes, keepdims=True)
    eps = 2.0**-52 if op == "rms_norm" else 1e-5
    weight = call.tensors["weight"].numpy().reshape(per_channel)
    bias = 0.0 if op == "rms_norm" else call.tensors["bias"].numpy().reshape(per_channel)
    z = (x - center) / np.sqrt(spread**2 + eps) * weight + bias
    wanted = np.maximum(z.reshape(shape).filled(0.0) + call.tensors["residual"].numpy(), 0.0) * valid.numpy()
    np.testing.assert_allclose(expected(call)["output"].numpy(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("op", OPS)
def test_the_oracle_leaves_what_it_is_given(op: str) -> None:
    settings = {"training": True} if op == "batch_norm" else {}
    call = random_call(op, (4, 6, 5), **settings)
    before = {name: None if t is None else t.clone() for name, t in call.tensors.items()}
    expected(call)
    for name, tensor in before.items():
        if tensor is not None:
            assert torch.equal(tensor, call.tensors[name])
