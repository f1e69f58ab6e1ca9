"""Values on which norms are known to fail: a mean far above the spread, no spread, nothing finite."""

from __future__ import annotations

import math

import pytest
import torch
from tests.conformance.call import ADD_OPS, DTYPES, OPS, random_call, run
from tests.conformance.check import assert_conforms
from tests.routes import OURS

FAR = {
    torch.float64: [(1e6, 1.0), (1e4, 1e-2), (1e8, 1.0), (-1e6, 1e-3)],
    torch.float32: [(1e6, 1.0), (1e4, 1e-2), (-1e3, 1e-2), (1e-3, 1e-6)],
    torch.bfloat16: [(100.0, 1.0), (-30.0, 1.0)],  # at more there is but one bfloat16 number within the spread
    torch.float16: [(1000.0, 1.0), (1e4, 5e3)],  # squares are beyond float16
}


def modes(op: str) -> list[dict[str, object]]:
    return [{"training": True}, {"training": False}] if op == "batch_norm" else [{}]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_large_mean(op: str, dtype: torch.dtype, route: str) -> None:
    for mean, std in FAR[dtype]:
        for mode in modes(op):
            for finish in ({}, {"residual": True, "activation": "silu"}) if op not in ADD_OPS else ({},):
                # In float16 the variance and the sums over x would be infinite in the largest case.
                wide = torch.promote_types(dtype, torch.float32)
                given = dict.fromkeys(("running_mean", "running_var", "weight", "bias"), wide)
                call = random_call(op, (8, 6, 33), dtype, mean=mean, std=std, dtypes=given, **mode, **finish)
                assert_conforms(call, route, f"mean {mean} spread {std}")


@pytest.mark.parametrize("route", OURS, indirect=True)
def test_large_mean_keeps_the_running_variance(route: str) -> None:
    """Mean 1e6, spread 1 in float32: the variance of 4096 values to 1e-3 of itself, which one pass loses altogether."""
    for op in ("batch_norm", "instance_norm"):
        settings = {"training": True} if op == "batch_norm" else {}
        call = random_call(op, (2, 3, 2048), mean=1e6, std=1.0, momentum=1.0, **settings)
        axes = (0, 2) if op == "batch_norm" else (2,)
        wanted = call.input.double().var(axes, correction=1)
        wanted = wanted if op == "batch_norm" else wanted.mean(0)
        torch.testing.assert_close(run(call)["running_var"].double(), wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_constant_input(op: str, dtype: torch.dtype, route: str) -> None:
    """No variance at all: ε alone is under the root, and the gradient is multiplied by 1/√ε."""
    for value in (0.0, 0.1, 3.0, -1000.0):
        for mode in modes(op):
            call = random_call(op, (4, 6, 7), dtype, **mode)
            tensors = {"input": torch.full_like(call.input, value)}
            if op in ADD_OPS:
                tensors["residual"] = torch.full_like(call.input, value)
            assert_conforms(call.with_tensors(**tensors), route, f"constant {value}")


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1.0, 100.0])
@pytest.mark.parametrize("op", OPS)
def test_eps(op: str, eps: float, route: str) -> None:
    for dtype in DTYPES:
        for mode in modes(op):
            if eps == 0 and mode.get("training"):
                continue  # refused
            assert_conforms(random_call(op, (4, 6, 7), dtype, eps=eps, **mode), route)


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm"])
def test_default_eps_of_rms_norm(op: str, route: str) -> None:
    """Values so small that ε decides: it is the spacing of the arithmetic's dtype at 1, not of x's."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        call = random_call(op, (8, 32), dtype, mean=0.0, std=2e-4)
        residual = {"residual": call.input.flip(0)} if op == "add_rms_norm" else {}
        assert_conforms(call.with_tensors(**residual), route)
    call = random_call(op, (8, 32), torch.float64, mean=0.0, std=1e-8)
    residual = {"residual": call.input.flip(0)} if op == "add_rms_norm" else {}
    assert_conforms(call.with_tensors(**residual), route)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("op", ["batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"])
def test_what_is_not_finite_stays_in_its_statistic(op: str, value: float, route: str) -> None:
    """Outputs and gradients of every other channel (sample, group) are unchanged, to the bit."""
    for mode in modes(op):
        call = random_call(op, (4, 6, 7), torch.float32, running=op == "batch_norm", **mode)
        x = call.input.clone()
        x[1, 2, 3] = value
        spoilt = run(call.with_tensors(input=x))
        clean = run(call)
        touched = torch.zeros_like(x, dtype=torch.bool)
        if op == "batch_norm":
            touched[:, 2] = True
        elif op == "instance_norm":
            touched[1, 2] = True
        elif op == "group_norm":
            touched[1, 2:4] = True
        else:
            touched[1, 2] = True
        for name in ("output", "grad input"):
            assert torch.equal(spoilt[name][~touched], clean[name][~touched]), name
        assert not spoilt["output"][1, 2, 3].isfinite() or (op == "rms_norm" and math.isinf(value))
