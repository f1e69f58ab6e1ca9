"""What a form computes, by plain operations, to be compared with what a module computes."""

from __future__ import annotations

import torch
from torch import Tensor

from gammabeta.layers.form import LOW, Form


def expected_of(form: Form, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Compute a form by plain operations, with its roundings; in float64 for float64 x, in float32 for others."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = x.movedim(form.axis, -1).to(wide)
    if form.kind == "layer":
        h = h - h.mean(-1, keepdim=True)
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + form.eps)
    scale = form.scale(weight)
    middle = form.rounded_to(x.dtype, None if weight is None else weight.dtype)
    if middle is not None:
        h = h.to(middle)
    elif scale is not None:
        scale = scale.to(wide)
    h = h if scale is None else h * scale
    h = h if bias is None else h + bias.reshape(-1)
    return h.to(form.result(x.dtype, weight, bias)).movedim(-1, form.axis)


def alike(expected: Tensor, y: Tensor) -> float | None:
    """Return the share of values that are equal, in float32 to rounding; None where the dtypes differ."""
    if expected.dtype != y.dtype:
        return None
    allowed = 0.0 if y.dtype in LOW else 1e-5 * float(expected.abs().max())
    return float(((expected - y).abs() <= allowed).double().mean())


def inverse_deviation(form: Form, x: Tensor) -> Tensor:
    """Return what each sample is multiplied by, in float64."""
    wide = x.double().movedim(form.axis, -1)
    spread = wide - wide.mean(-1, keepdim=True) if form.kind == "layer" else wide
    return torch.rsqrt(spread.square().mean(-1, keepdim=True) + form.eps)


def describe(form: Form) -> str:
    """Return the name of a form's kind."""
    return {"rms": "RMSNorm", "layer": "LayerNorm"}.get(form.kind, form.kind)
