"""A call of the conformance suite, made to the ops themselves: forward and backward, by kernel and by the reference.

The values, tolerances and comparison are the conformance suite's. The call differs: it goes to torch.ops.gammabeta, not
to a public function, which may choose torch's op. So does the expected result: the reference in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gammabeta import reference
from gammabeta.moments import statistics_dtype
from gammabeta.ops import add_sample_norm_forward
from gammabeta.proof.call import Call
from gammabeta.proof.check import assert_close
from gammabeta.proof.operations import ADD_OPS, CHANNEL_OPS
from gammabeta.proof.random_call import random_call

ops = torch.ops.gammabeta

MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "channel_norm": ("batch_norm", {"training": True, "running": False}),
    "channel_apply": ("batch_norm", {"training": False}),
    "group": ("group_norm", {}),
    "instance": ("instance_norm", {"running": False}),
    "layer": ("layer_norm", {}),
    "rms": ("rms_norm", {}),
    "add_layer": ("add_layer_norm", {}),
    "add_rms": ("add_rms_norm", {}),
}
"""Every op with a kernel and every set of axes it is called with, by norm."""

OVER_CHANNELS = ("channel_norm", "channel_apply", "group", "instance")  # (N, C, *positions), parameters (C,)
OVER_LAST = ("layer", "rms", "add_layer", "add_rms")  # (*samples, C), parameters of the normalized shape
FINISHED = ("channel_norm", "channel_apply", "group", "instance", "layer", "rms")  # residual, activation and mask


def op_call(mode: str, shape: Sequence[int], dtype: torch.dtype = torch.float32, **settings: Any) -> Call:
    """Return `random_call` of that mode."""
    op, own = MODES[mode]
    return random_call(op, shape, dtype, **{**own, **settings})


STATISTICS_ROUNDINGS = 32
"""Tolerance: of a mean, times the mean of |x|; of a variance, times itself, whatever the mean is.

2e-6 in float32. Sums of up to millions of values in blocks have some ten roundings (up to 10 were measured for the
reference in float32). Plain sums, or sums of deviations from a wrong mean, would have thousands.
"""


@dataclass(frozen=True)
class Results:
    """Results of forward and backward: what the conformance suite compares, and the statistics unless given."""

    compared: dict[str, Tensor]
    statistics: tuple[Tensor, Tensor, Tensor] | None  # mean, var, count

    def tensors(self) -> dict[str, Tensor]:
        names = ("mean", "var", "count")
        return self.compared | dict(zip(names, self.statistics or (), strict=False))


@dataclass(frozen=True)
class Implementation:
    """The functions of a norm's forward and backward, by the names of the ops."""

    channel_norm_forward: Callable[..., Any]
    channel_apply_forward: Callable[..., Any]
    channel_norm_backward: Callable[..., Any]
    sample_norm_forward: Callable[..., Any]
    sample_norm_backward: Callable[..., Any]
    add_sample_norm_forward: Callable[..., Any]
    add_sample_norm_backward: Callable[..., Any]


KERNELS = Implementation(**{name: getattr(ops, name) for name in Implementation.__annotations__})


def _add_sample_norm_backward(g_y: Tensor, g_total: Tensor, total: Tensor, channel_axes: int, *rest: Any) -> Any:
    weight, bias, mean, var, count, eps, center = rest
    g, g_weight, g_bias, _ = reference.sample_norm_backward(
        g_y, total, total.ndim - channel_axes, channel_axes, 1, weight, bias, None, None, mean, var, count, eps,
        "none", 0.0, center,
    )  # fmt: skip
    return g + g_total, g_weight, g_bias


REFERENCE = Implementation(
    reference.channel_norm_forward,
    reference.channel_apply_forward,
    reference.channel_norm_backward,
    reference.sample_norm_forward,
    reference.sample_norm_backward,
    add_sample_norm_forward,
    _add_sample_norm_backward,
)


def by_kernel(call: Call) -> Results:
    """Run the ops, and return their results in their own dtypes."""
    return _run(call, KERNELS)


def by_reference(call: Call) -> Results:
    """Run the reference in float64 on the same numbers."""
    wide = {name: t if t is None or name == "mask" else _wide(t) for name, t in call.tensors.items()}
    if call.op in ADD_OPS:
        # The sum is normalized as it is stored, so float64 must use the rounded x + residual too.
        total = call.input + call.tensors["residual"]
        wide |= {"input": _wide(total), "residual": torch.zeros_like(total, dtype=torch.float64)}
    gradients = tuple(map(_wide, call.gradients))
    settings = {**call.settings, "eps": _eps(call)}  # the one of the dtype that the kernel computes in
    return _run(Call(call.op, wide, settings, gradients), REFERENCE)


def _wide(t: Tensor) -> Tensor:
    """Convert to float64 and contiguous: torch adds up pairwise there, and one by one in some other layouts."""
    return t.to(torch.float64, copy=True, memory_format=torch.contiguous_format)


def assert_equals_reference(call: Call, about: str = "", results: Results | None = None) -> Results:
    """Assert that the kernel's results equal the reference's to the conformance suite's tolerances."""
    got, wanted = by_kernel(call) if results is None else results, by_reference(call)
    assert_close(call, got.compared, wanted.compared, "added" if call.op in ADD_OPS else "ops", about)
    if got.statistics is not None:
        assert wanted.statistics is not None
        assert_statistics(call, got.statistics, wanted.statistics, about)
    return got


def assert_statistics(
    call: Call, got: tuple[Tensor, Tensor, Tensor], wanted: tuple[Tensor, Tensor, Tensor], about: str = ""
) -> None:
    """Assert mean and variance to STATISTICS_ROUNDINGS, the count exactly."""
    dtype = statistics_dtype(_total(call).dtype)
    u = torch.finfo(dtype).eps / 2
    size = mean_of_absolutes(call)
    for name, actual, expected in zip(("mean", "var", "count"), got, wanted, strict=True):
        assert actual.shape == expected.shape, f"{call.op} {name} {about}: {tuple(actual.shape)}"
        assert actual.dtype == (torch.int64 if name == "count" else dtype), f"{call.op} {name}: {actual.dtype}"
        if name == "count":
            assert torch.equal(actual, expected), f"{call.op} count {about}: {actual}, expected {expected}"
            continue
        magnitude = size if name == "mean" else expected
        allowed = STATISTICS_ROUNDINGS * u * magnitude + torch.finfo(dtype).tiny
        same = (actual == expected) | (actual.isnan() & expected.isnan())
        error = torch.where(same, 0.0, (actual.double() - expected).abs())
        off = ~(error <= allowed)
        at = int(off.flatten().int().argmax()) if off.numel() else 0
        assert not off.any(), (
            f"{call.op} {name}, x {tuple(call.input.shape)} {call.input.dtype} {about}: {int(off.sum())} of "
            f"{off.numel()} off, the first {actual.flatten()[at].item():.9g}, expected "
            f"{expected.flatten()[at].item():.9g}, allowed error {allowed.flatten()[at].item():.3g}"
        )


def mean_of_absolutes(call: Call) -> Tensor:
    """Return the mean of |x| of each statistic, in float64: the scale of a mean's rounding."""
    wide = Call(call.op, {**call.tensors, "input": _total(call).double().abs()}, call.settings)
    if call.op == "batch_norm":
        return reference.channel_moments(wide.input, mask_of(wide)).mean
    return reference.sample_moments_of(wide.input, reference.Axes(*sample_axes(wide)), mask_of(wide), True)[0]


def mask_of(call: Call) -> Tensor | None:
    """Return the mask as the ops take it: expanded, without the channel axes, with strides 0 where it broadcasts."""
    mask, x = call.tensor("mask"), call.input
    if mask is None:
        return None
    if call.op in CHANNEL_OPS:
        return torch.broadcast_to(mask, (x.shape[0], *x.shape[2:]))
    return torch.broadcast_to(mask, x.shape[: x.ndim - len(call.setting("normalized_shape"))])


def sample_axes(call: Call) -> tuple[int, int, int]:
    """Return sample_axes, channel_axes and groups of sample_norm."""
    if call.op == "group_norm":
        return 1, 1, call.setting("num_groups")
    if call.op == "instance_norm":
        return 1, 1, call.input.shape[1]
    k = len(call.setting("normalized_shape"))
    return call.input.ndim - k, k, 1


def finish_of(call: Call) -> tuple[float, str, float]:
    """Return ε, activation and slope."""
    return _eps(call), call.setting("activation") or "none", call.setting("activation_slope")


def named(call: Call, gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """Name the gradients by x, weight, bias and residual as the conformance suite does."""
    results = {}
    for name, gradient in zip(("input", "weight", "bias", "residual"), gradients, strict=True):
        if call.tensor(name) is not None:
            assert gradient is not None
            results[f"grad {name}"] = gradient
        else:
            assert gradient is None or gradient.numel() == 0, f"a gradient by {name}, which was not given"
    return results


def _eps(call: Call) -> float:
    eps = call.setting("eps")
    return torch.finfo(statistics_dtype(_total(call).dtype)).eps if eps is None else eps


def _total(call: Call) -> Tensor:
    """Return the tensor that is normalized."""
    return call.input + call.tensors["residual"] if call.op in ADD_OPS else call.input


def _run(call: Call, by: Implementation) -> Results:
    x, weight, bias, residual = (call.tensor(name) for name in ("input", "weight", "bias", "residual"))
    assert x is not None
    finish, mask = finish_of(call), mask_of(call)
    if call.op == "batch_norm" and call.running:
        given = call.tensors["running_mean"], call.tensors["running_var"]
        y = by.channel_apply_forward(x, *given, weight, bias, residual, mask, *finish)
        gradients = by.channel_norm_backward(call.gradients[0], x, weight, bias, residual, mask, *given, None, *finish)
        return Results({"output": y, **named(call, gradients)}, None)
    if call.op == "batch_norm":
        y, *statistics = by.channel_norm_forward(x, weight, bias, residual, mask, *finish)
        gradients = by.channel_norm_backward(
            call.gradients[0], x, weight, bias, residual, mask, *statistics, *finish
        )  # fmt: skip
        return Results({"output": y, **named(call, gradients)}, tuple(statistics))
    center = "rms" not in call.op
    if call.op in ADD_OPS:
        axes = sample_axes(call)[1]
        y, total, *statistics = by.add_sample_norm_forward(x, residual, axes, weight, bias, finish[0], center)
        g, g_weight, g_bias = by.add_sample_norm_backward(
            *call.gradients, total, axes, weight, bias, *statistics, finish[0], center
        )
        gradients = g.to(x.dtype), g_weight, g_bias, g.to(residual.dtype)  # type: ignore[union-attr]
        return Results({"output": y, "total": total, **named(call, gradients)}, tuple(statistics))
    y, *statistics = by.sample_norm_forward(x, *sample_axes(call), weight, bias, residual, mask, *finish, center)
    gradients = by.sample_norm_backward(
        call.gradients[0], x, *sample_axes(call), weight, bias, residual, mask, *statistics, *finish, center
    )
    return Results({"output": y, **named(call, gradients)}, tuple(statistics))


def with_layouts(call: Call, **layouts: Callable[[Tensor], Tensor]) -> Call:
    """Return the call with some tensors in other layouts; `gradients` for the gradients of the outputs."""
    tensors = {name: layouts[name](t) for name, t in call.tensors.items() if name in layouts and t is not None}
    back = layouts.get("gradients", lambda g: g)
    return Call(call.op, {**call.tensors, **tensors}, call.settings, tuple(back(g) for g in call.gradients))
