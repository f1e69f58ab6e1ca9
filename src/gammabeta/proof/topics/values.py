"""Values on which norms are known to fail: a mean far above the spread, no spread, subnormal, nothing finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from gammabeta.proof.call import Call, run
from gammabeta.proof.case import Case, Make, described, drawn
from gammabeta.proof.check import Comparison, require
from gammabeta.proof.operations import ADD_OPS, Mode, finishes, modes, takes_batch

SHAPE = (4, 6, 7)
FAR = {
    torch.float64: ((1e6, 1.0), (1e4, 1e-2), (1e8, 1.0), (-1e6, 1e-3)),
    torch.float32: ((1e6, 1.0), (1e4, 1e-2), (-1e3, 1e-2), (1e-3, 1e-6)),
    torch.bfloat16: ((100.0, 1.0), (-30.0, 1.0)),  # at more there is but one bfloat16 number within the spread
    torch.float16: ((1000.0, 1.0), (1e4, 5e3)),  # squares are beyond float16
}
SUBNORMAL = {torch.float64: 1e-310, torch.float32: 1e-40, torch.bfloat16: 1e-39, torch.float16: 1e-6}
SMALL = {torch.float64: 1e-8}
"""Values so small that RMSNorm's default ε decides, where they are not 2e-4."""


def cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    for mode in modes(op):
        yield from _large_mean(op, dtype, mode)
        for value in (0.0, 0.1, 3.0, -1000.0):
            yield Case(described("constant", value, mode), _constant(drawn(op, SHAPE, dtype, **mode), value))
        for eps in (0.0, 1e-12, 1.0, 100.0):
            if eps or not takes_batch(op, mode):  # else refused
                yield Case(described({"eps": eps}, mode), drawn(op, SHAPE, dtype, eps=eps, **mode))
        make = drawn(op, (8, 6, 33), dtype, mean=0.0, std=SUBNORMAL[dtype], **mode)
        yield Case(described("subnormal", mode), make)
        if dtype == torch.float32 and op not in ADD_OPS and (op != "instance_norm" or not mode.get("running", True)):
            for value in (math.nan, math.inf, -math.inf):
                make = drawn(op, SHAPE, dtype, **mode)
                yield Case(described("one", value, mode), make, partial(_stays_in_its_statistic, value))
    if "rms" in op:
        yield Case("eps_decides", _small(op, dtype))
    if dtype == torch.float32 and op in ("batch_norm", "instance_norm"):
        mode = modes(op)[0]
        make = drawn(op, (2, 3, 2048), dtype, mean=1e6, std=1.0, momentum=1.0, **mode)
        yield Case("variance_at_large_mean", make, _keeps_the_running_variance, ("ops", "reference", "interpreted"))
        constants = modes(op)[-1]
        for finish in ({"activation": "relu"}, {"activation": "leaky_relu"}, {}):
            make = drawn(op, SHAPE, dtype, **constants, **finish)
            yield Case(described("infinite_x", constants, finish), make, _has_a_gradient_without_x)


def _large_mean(op: str, dtype: torch.dtype, mode: Mode) -> Iterator[Case]:
    # In float16 the variance and the sums over x would be infinite in the largest case.
    wide = torch.promote_types(dtype, torch.float32)
    given = dict.fromkeys(("running_mean", "running_var", "weight", "bias"), wide)
    for mean, std in FAR[dtype]:
        for finish in finishes(op):
            make = drawn(op, (8, 6, 33), dtype, mean=mean, std=std, dtypes=given, **mode, **finish)
            yield Case(described({"mean": mean, "std": std}, mode, finish), make)


def _constant(make: Make, value: float) -> Make:
    """Return a call without any variance: ε alone is under the root, and the gradient is multiplied by 1/√ε."""

    def constant(seed: int) -> Call:
        call = make(seed)
        names = ("input", "residual") if call.op in ADD_OPS else ("input",)
        return call.with_tensors(**dict.fromkeys(names, torch.full_like(call.input, value)))

    return constant


def _small(op: str, dtype: torch.dtype) -> Make:
    """Return a call by whose default ε the result is decided: the spacing of the arithmetic's dtype at 1, not x's."""

    def small(seed: int) -> Call:
        call = drawn(op, (8, 32), dtype, mean=0.0, std=SMALL.get(dtype, 2e-4))(seed)
        return call.with_tensors(residual=call.input.flip(0)) if op in ADD_OPS else call

    return small


def _stays_in_its_statistic(value: float, call: Call, route: str) -> list[Comparison]:
    """Outputs and gradients of every other channel (sample, group) are unchanged, to the bit."""
    x = call.input.clone()
    x[1, 2, 3] = value
    spoilt, clean = run(call.with_tensors(input=x)), run(call)
    touched = torch.zeros_like(x, dtype=torch.bool)
    if call.op == "batch_norm":
        touched[:, 2] = True
    elif call.op == "group_norm":
        touched[1, 2:4] = True
    else:
        touched[1, 2] = True
    for name in ("output", "grad input"):
        same = torch.equal(spoilt[name][~touched], clean[name][~touched])
        require(same, f"{name} of other statistics has other bits with one value {value}")
    by_infinity = call.op == "rms_norm" and math.isinf(value)  # x/∞ is 0, and ∞/∞ is NaN
    finite = bool(spoilt["output"][1, 2, 3].isfinite())
    require(by_infinity or not finite, f"the output is finite where the input is {value}")
    return []


def _has_a_gradient_without_x(call: Call, route: str) -> list[Comparison]:
    """By constant statistics ∂ℓ/∂x is ∂ℓ/∂z·γ/√(σ² + ε) whatever x is: an infinite one gives no NaN, as 0·x would."""
    x, found = call.input.clone(), []
    for value in (1e3, math.inf):
        x[1, 2, 3] = value * call.given("weight")[2].sign()
        found.append(run(call.with_tensors(input=x))["grad input"])
    require(torch.equal(*found), "the gradient of an infinite x is not that of a large one")
    return []


def _keeps_the_running_variance(call: Call, route: str) -> list[Comparison]:
    """Mean 1e6, spread 1 in float32: the variance of 4096 values to 1e-3 of itself, which one pass loses altogether."""
    axes = (0, 2) if call.op == "batch_norm" else (2,)
    wanted = call.input.double().var(axes, correction=1)
    wanted = wanted if call.op == "batch_norm" else wanted.mean(0)
    off = ((run(call)["running_var"].double() - wanted) / wanted).abs().max().item()
    require(off <= 1e-3, f"running_var is off by {off:.2g} of itself")
    return []
