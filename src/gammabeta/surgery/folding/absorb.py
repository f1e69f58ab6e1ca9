"""Absorption of a scale and shift into the weights of a convolution or linear layer."""

from __future__ import annotations

from math import prod
from typing import TypeAlias

import torch
from torch import Tensor, nn

Layer: TypeAlias = "nn.modules.conv._ConvNd | nn.Linear"


def after(layer: Layer, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of layer'(x) = layer(x)·scale + shift.

        W'[o, …] = W[o, …]·scale[o]        b'[o] = b[o]·scale[o] + shift[o]

    In a transposed convolution o is axis 1 within each group: W (I, O/groups, *kernel).

    Args:
        layer: a convolution, transposed or not, or a linear layer.
        scale, shift: float64, (O,).

    Returns:
        W' and b', in the layer's dtype and memory format, computed in float64.
    """
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        inputs, outputs, *kernel = weight.shape
        grouped = weight.reshape(layer.groups, inputs // layer.groups, outputs, prod(kernel))
        new = (grouped * scale.view(layer.groups, 1, outputs, 1)).reshape(weight.shape)
    else:
        new = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias.detach().double() * scale + shift
    return _like(layer, new, bias)


def before(layer: Layer, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of layer'(x) = layer(x·scale + shift), for a layer that does not pad with zeros.

        W'[o, i, …] = W[o, i, …]·scale[i]        b'[o] = b[o] + Σ_(i, …) W[o, i, …]·shift[i]

    With groups, i counts the inputs of o's group.

    Args:
        layer: a convolution (not transposed) or a linear layer.
        scale, shift: float64, (I,).

    Returns:
        W' and b', in the layer's dtype and memory format, computed in float64.
    """
    weight = layer.weight.detach().double()
    groups = getattr(layer, "groups", 1)
    outputs, inputs, *kernel = weight.shape
    grouped = weight.reshape(groups, outputs // groups, inputs, prod(kernel))
    scaled = (grouped * scale.view(groups, 1, inputs, 1)).reshape(weight.shape)
    bias = (grouped * shift.view(groups, 1, inputs, 1)).sum((2, 3)).flatten()
    if layer.bias is not None:
        bias = bias + layer.bias.detach().double()
    return _like(layer, scaled, bias)


def _like(layer: Layer, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    old = layer.weight
    new = torch.empty_like(old, requires_grad=False).copy_(weight)
    return new, bias.to(old.dtype if layer.bias is None else layer.bias.dtype)
