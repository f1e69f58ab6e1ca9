"""The norms as formulas in elementwise operations and means, whose derivatives of every order torch has right."""

from __future__ import annotations

import torch
from tests.peers.ops import OpSample
from torch import Tensor


def by_formula(sample: OpSample, **tensors: Tensor) -> Tensor:
    """The output of the sample's call with these tensors; running statistics are read and not moved."""
    x, settings = tensors["input"], sample.settings
    weight, bias = tensors.get("weight"), tensors.get("bias")
    eps = settings.get("eps", torch.finfo(x.dtype).eps if sample.op == "rms_norm" else 1e-5)
    if sample.op in ("layer_norm", "rms_norm"):
        axes = tuple(range(-len(settings["normalized_shape"]), 0))
        center = 0.0 if sample.op == "rms_norm" else x.mean(axes, keepdim=True)
        y = (x - center) / (((x - center) ** 2).mean(axes, keepdim=True) + eps).sqrt()
        return _affine(y, weight, bias)
    per_channel = (1, -1, *(1,) * (x.ndim - 2))
    weight, bias = (None if t is None else t.reshape(per_channel) for t in (weight, bias))
    if sample.op == "batch_norm" and not settings.get("training", False):
        mean, var = (tensors[name].reshape(per_channel) for name in ("running_mean", "running_var"))
        return _affine((x - mean) / (var + eps).sqrt(), weight, bias)
    if sample.op == "batch_norm":
        grouped, axes = x, (0, *range(2, x.ndim))
    else:
        groups = settings.get("num_groups", x.shape[1])
        grouped, axes = x.reshape(x.shape[0], groups, -1), (2,)
    centered = grouped - grouped.mean(axes, keepdim=True)
    y = centered / ((centered**2).mean(axes, keepdim=True) + eps).sqrt()
    return _affine(y.reshape(x.shape), weight, bias)


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias
