"""What the weight of a norm means: γ itself, or γ − 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.introspection.norms import norm_of
from gammabeta.introspection.private_copy import copy_of, undisturbed


def offset_of(module: nn.Module) -> float | None:
    """Return what a norm adds to its weight to give γ: 0.0 or 1.0; None if it cannot be told.

    The class of torch's and gammabeta's norms tells, and so does the form of a norm that computes a known one
    (`norm_of`). Of any other, such as one of another kind or with an activation, a copy runs on random inputs, with β
    at 0: its output must be the same for all inputs at one of the weights 0 and −1, and differ in all channels at the
    other.
    """
    norm = norm_of(module, probe=True)
    if norm is None or norm.affine.weight is None or norm.affine.offset is not None:
        return None if norm is None else norm.affine.offset
    tensors = [*module.parameters(), *module.buffers()]
    if norm.scripted or not tensors or any(tensor.is_meta for tensor in tensors):
        return None
    try:
        with undisturbed(tensors[0].device), torch.no_grad():
            return _probed(copy_of(module).eval(), norm.affine.weight)
    except Exception:  # of another library's class: whatever it is, the answer is that we cannot tell
        return None


def _probed(norm: Any, held: str) -> float | None:
    """Ask a copy, which holds its weight under that name."""
    weight: Tensor = getattr(norm, held)
    norm.to(torch.float32)
    for name, parameter in norm.named_parameters():
        if name != held:
            parameter.zero_()
    for x in _inputs(weight.numel(), weight.device):
        varies = {}
        for value in (0.0, -1.0):
            weight.fill_(value)
            varies[value] = _share_that_varies(norm, x)
        if None in varies.values():
            continue
        if varies == {0.0: 0.0, -1.0: 1.0}:
            return 0.0
        if varies == {0.0: 1.0, -1.0: 0.0}:
            return 1.0
        return None
    return None


def _inputs(channels: int, device: torch.device) -> Iterator[Tensor]:
    """Yield inputs with the channels on axis 1 or on the last axis, of shapes that different norms take."""
    random = torch.Generator().manual_seed(0)
    for shape in ((4, channels, 3, 2), (4, channels, 3), (4, 3, channels), (4, channels), (4, channels, 2, 3, 2)):
        yield torch.randn(shape, generator=random).to(device)


def _share_that_varies(norm: nn.Module, x: Tensor) -> float | None:
    """Return the share of channels whose output is not the same everywhere; None if the norm does not take x."""
    try:
        y = norm(x)
    except Exception:
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return None
    axis = 1 if x.ndim != 3 or x.shape[1] != 3 else 2
    flat = y.movedim(axis, 0).flatten(1)
    return float((flat != flat[:, :1]).any(1).double().mean())
