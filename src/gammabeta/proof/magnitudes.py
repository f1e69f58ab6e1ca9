"""The size of the terms that are added up to each result, relative to which a rounding error is measured.

A sum of terms of size M that cancels to something small is off by roundings of M, not of what is left. So a tolerance
is a number of roundings, of a dtype's unit roundoff u each, times the M of the element in question. Two kinds:

    arithmetic   M with all that float32 (float64) arithmetic rounds, the mean among it: a mean μ stored to u·|μ|
                 moves x̂ by u·|μ|/σ, however small x̂ is.
    inside       M of what stands between the operations where a norm, a sum and an activation are composed, each
                 storing its result in a narrower dtype. Statistics are never stored so and have no part in it.

First-order error analysis of y = f(γx̂ + β + r) and of the gradients that reference.py quotes; Higham, "Accuracy and
Stability of Numerical Algorithms", chapters 1 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gammabeta.proof.call import RUNNING, Call, masked_elements
from gammabeta.proof.operations import ADD_OPS

CURVED = ("silu", "hardswish", "gelu")  # the derivative moves with z, at most as fast as z does
STEEPEST = 1.5  # of all activations, hardswish's slope at 3


@dataclass(frozen=True)
class Magnitude:
    """Of one result; `about_mean`, of a variance only, is the variance times (|μ|/σ)²."""

    arithmetic: Tensor
    inside: Tensor
    about_mean: Tensor | None = None


def magnitudes(call: Call) -> dict[str, Magnitude]:
    """Return for each result of the call its two magnitudes, of its shape, float64."""
    view = _View.of(call)
    arithmetic = _propagate(call, view, with_mean=True)
    half = torch.finfo(call.input.dtype).bits == 16  # else nothing is stored in less than the arithmetic has
    inside = _propagate(call, view, with_mean=False) if half else arithmetic
    about_mean = _about_mean(call, view)
    return {
        name: Magnitude(arithmetic[name], inside[name], about_mean if name == "running_var" else None)
        for name in arithmetic
    }


@dataclass(frozen=True)
class _View:
    """x as (N, G, D, S), the axes of its statistics, and the standardized values with what they came from."""

    shape: tuple[int, int, int, int]
    parameter_shape: tuple[int, int, int, int]
    axes: tuple[int, ...]  # of the statistics; () where they are the running ones
    counts: Tensor
    x: Tensor
    rstd: Tensor
    xhat: Tensor
    distance: Tensor  # (|x| + |μ|)/σ, where rounding of the mean and of x·rstd − μ·rstd is measured
    centered: bool

    @classmethod
    def of(cls, call: Call) -> _View:
        x, op = call.input.detach().double(), call.op
        if op in ADD_OPS:
            x = (call.input + call.given("residual")).double()
        if op in ("batch_norm", "instance_norm"):
            shape = (x.shape[0], x.shape[1], 1, x[:1, :1].numel() if x.shape[0] else 0)
            parameters = (1, x.shape[1], 1, 1)
        elif op == "group_norm":
            groups = call.setting("num_groups")
            positions = x.shape[2:].numel()
            size = x.shape[1] // groups
            shape, parameters = (x.shape[0], groups, size, positions), (1, groups, size, 1)
        else:
            size = torch.Size(call.setting("normalized_shape")).numel()
            samples = x.shape[: x.ndim - len(call.setting("normalized_shape"))].numel()
            shape, parameters = (samples, 1, size, 1), (1, 1, size, 1)
        axes = () if call.running else (0, 2, 3) if op == "batch_norm" else (2, 3)
        mask = masked_elements(call)
        counts = torch.ones(shape, dtype=torch.bool) if mask is None else mask.reshape(shape)
        x = torch.where(counts, x.reshape(shape), 0.0)
        eps = call.setting("eps")
        eps = (2.3e-16 if x.dtype == torch.float64 else 1.2e-7) if eps is None else eps
        centered = "rms" not in op
        # Subnormal numbers are rounded as the smallest normal one is, and so is a mean of them.
        least = torch.finfo(torch.float64 if call.input.dtype == torch.float64 else torch.float32).smallest_normal
        if call.running:
            mean, var = (call.given(name).double().reshape(parameters) for name in RUNNING)
            distance = x.abs() + mean.abs() + least
        else:
            n = counts.double().sum(axes, keepdim=True).clamp(min=1)
            mean = x.sum(axes, keepdim=True) / n * centered
            var = torch.where(counts, x - mean, 0.0).square().sum(axes, keepdim=True) / n
            distance = x.abs() + x.abs().sum(axes, keepdim=True) / n + least
        rstd = torch.rsqrt(var + eps)
        xhat = torch.where(counts, (x - mean) * rstd, 0.0)
        return cls(shape, parameters, axes, counts, x, rstd, xhat, distance * rstd * centered, centered)


def _propagate(call: Call, view: _View, *, with_mean: bool) -> dict[str, Tensor]:
    def parameter(name: str, absent: float) -> Tensor:
        tensor = call.tensor(name)
        given = torch.full((1,), absent, dtype=torch.float64) if tensor is None else tensor.double().abs()
        return given.reshape(1, 1, 1, 1) if tensor is None else given.reshape(view.parameter_shape)

    def mean(t: Tensor) -> Tensor:
        return t.sum(view.axes, keepdim=True) / view.counts.double().sum(view.axes, keepdim=True).clamp(min=1)

    gamma, beta = parameter("weight", 1.0), parameter("bias", 0.0)
    residual = None if call.op in ADD_OPS else call.tensor("residual")
    r = torch.zeros(1) if residual is None else residual.double().abs().reshape(view.shape)
    r = torch.where(view.counts, r, 0.0)
    xhat, shift = view.xhat.abs(), view.distance if with_mean else torch.zeros(())
    z = torch.where(view.counts, gamma * (xhat + shift) + beta + r, 0.0)
    activation = call.setting("activation")
    y = z if activation is None else STEEPEST * z
    g_y = torch.where(view.counts, call.gradients[0].double().abs().reshape(view.shape), 0.0)
    g_z = g_y * (1 + z) if activation in CURVED else g_y
    g_xhat = gamma * g_z
    if view.axes:
        g_x = g_xhat + mean(xhat * g_xhat) * xhat + (mean(g_xhat) if view.centered else 0.0)
        # √(σ² + ε) is off by at most as much of itself as x̂ is off, both through the mean.
        g_x = g_x * (1 + mean(shift * torch.ones_like(xhat))) if with_mean else g_x
        g_x = g_x + xhat * mean(shift * g_xhat) + shift * mean(xhat * g_xhat)
    else:
        g_x = g_xhat
    g_x = torch.where(view.counts, g_x * view.rstd, 0.0)

    x = call.input
    sums = tuple(axis for axis, size in enumerate(view.parameter_shape) if size == 1)
    results = {"output": y.reshape(x.shape), "grad input": g_x.reshape(x.shape)}
    if call.op in ADD_OPS:
        results["total"] = call.input.double().abs() + call.given("residual").double().abs()
        results["grad input"] = results["grad input"] + call.gradients[1].double().abs()
        results["grad residual"] = results["grad input"]
    elif residual is not None:
        results["grad residual"] = g_z.reshape(x.shape)
    for name, terms in (("weight", (xhat + shift) * g_z), ("bias", g_z)):
        if (tensor := call.tensor(name)) is not None:
            results[f"grad {name}"] = terms.sum(sums).reshape(tensor.shape)
    return results | _running(call, view)


def _running(call: Call, view: _View) -> dict[str, Tensor]:
    """(1 − momentum)·|old| + momentum·mean|x|, and of the variances, which two passes keep free of the mean."""
    results = {}
    for name in RUNNING:
        if (old := call.tensor(name)) is None:
            continue
        results[name] = old.double().abs()
        if call.running:
            continue
        n = view.counts.double().sum(view.axes)
        if name == "running_mean":
            batch = view.x.abs().sum(view.axes) / n.clamp(min=1)
        else:
            m2 = (view.xhat / view.rstd).square().sum(view.axes)
            batch = m2 / (n - 1).clamp(min=1)
        if call.op == "instance_norm":
            has = n > 1
            batch = torch.where(has, batch, 0.0).sum(0) / has.sum(0).clamp(min=1)
        momentum = call.setting("momentum")
        results[name] = abs(1 - momentum) * results[name] + abs(momentum) * batch.nan_to_num(0.0, 0.0, 0.0)
    return results


def _about_mean(call: Call, view: _View) -> Tensor | None:
    """What the variance gains, in units of u², where it is taken about a mean that is off by u·mean|x|."""
    if call.tensor("running_var") is None or call.running:
        return None if call.tensor("running_var") is None else torch.zeros(call.input.shape[1], dtype=torch.float64)
    n = view.counts.double().sum(view.axes).clamp(min=1)
    square = (view.x.abs().sum(view.axes) / n).square()
    if call.op == "instance_norm":
        square = square.mean(0)
    gained: Tensor = abs(call.setting("momentum")) * square.nan_to_num(0.0, 0.0, 0.0)
    return gained
