"""Padded sequences: where they end in a model's inputs, and what padding does to the statistics of a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.introspection.norms import norm_of
from gammabeta.introspection.observe import tensors_in
from gammabeta.moments import Moments

# Sequences count as padded if they have at least this share of padding and this many positions.
_SHARE, _POSITIONS = 0.05, 4


@dataclass(frozen=True)
class Padding:
    """Effect of padded positions on the statistics of a norm's input.

    A BatchNorm or InstanceNorm is compared by its channels, over all samples. A GroupNorm, or a LayerNorm over several
    axes, is compared by the groups of each sample that has padding.

    Attributes:
        share: share of all positions that are padding.
        mean_shift: root mean square of (mean with padding − mean without)/σ without.
        variance_ratio: geometric mean of the variance with padding over that without.
    """

    share: float
    mean_shift: float
    variance_ratio: float


def padded_lengths(inputs: Any) -> dict[int, list[int]]:
    """Find sequences that end in zeros, and their lengths.

    Sequences are float tensors (N, L, C) or (N, C, L), spectrograms (N, C, L, F) or (N, C, F, L), and integers (N, L)
    such as tokens. Only those with different lengths and at least 5 % padding count. In a spectrogram one sample fills
    its axis, and no other axis ends or begins with zeros; images with borders do not look so.

    Returns:
        By the size of the sequence axis, the length of each sample without its trailing zeros.
    """
    found: dict[int, list[int]] = {}
    for x in tensors_in(inputs):
        if x.shape[:1].numel() < 2 or x.ndim not in (2, 3, 4) or x.dtype == torch.bool or x.is_complex():
            continue
        if (x.ndim == 2) is x.is_floating_point() or x.numel() == 0:
            continue
        for axis in range(1 if x.ndim < 4 else 2, x.ndim):
            size = x.shape[axis]
            live = _live(x, axis)
            if x.ndim == 4 and not (live[:, -1].any() and live[:, 0].all() and _live(x, 5 - axis)[:, [0, -1]].all()):
                continue
            ends = (live * torch.arange(1, size + 1, device=x.device)).amax(1).tolist()
            share = 1 - sum(ends) / (size * len(ends))
            if size >= _POSITIONS and len(set(ends)) > 1 and min(ends) > 0 and share >= _SHARE:
                found.setdefault(size, ends)
    return found


def _live(x: Tensor, axis: int) -> Tensor:
    """Return where on an axis each sample has values other than 0, (N, L)."""
    return (x != 0).movedim(axis, 1).flatten(2).any(2) if x.ndim > 2 else x != 0


def measure_padding(module: nn.Module, x: Tensor, lengths: dict[int, list[int]]) -> Padding | None:
    """Measure the effect of padding on the statistics that a norm takes of x; None where they contain no padding.

    Args:
        module: the norm.
        x: its input, with samples on axis 0.
        lengths: as `padded_lengths` returns them.
    """
    norm = norm_of(module)
    if norm is None or norm.axes is None or norm.kind is None or x.ndim < 3:
        return None
    # The axes among which the one of positions is looked for: those whose values share a statistic.
    inside = range(x.ndim - norm.axes.last, x.ndim) if norm.axes.last else range(2, x.ndim)
    if norm.axes.last == 1 or len(inside) == 0:
        return None
    at = [axis for axis in inside if x.shape[axis] in lengths and len(lengths[x.shape[axis]]) == x.shape[0]]
    if len(at) != 1 or (norm.axes.last and inside[0] != 1):
        return None
    ends = torch.tensor(lengths[x.shape[at[0]]], device=x.device)
    real = torch.arange(x.shape[at[0]], device=x.device) < ends[:, None]  # (N, L)
    x = x.to(torch.float64).movedim(at[0], -1)
    if norm.kind in ("batch", "instance"):
        x_CM = x.movedim(1, 0).flatten(1)
        shape = (x.shape[0], *[1] * (x.ndim - 3), x.shape[-1])
        kept = real.reshape(shape).expand(x.shape[0], *x.shape[2:]).flatten()
        return _compare([(x_CM, x_CM[:, kept])], real)
    groups = norm.axes.groups or 1
    if norm.kind == "rms" or (not norm.axes.last and x.shape[1] % groups):
        return None
    pairs = []
    for sample, mask in zip(x, real, strict=True):
        if not bool(mask.all()):
            grouped = sample.reshape(groups if not norm.axes.last else 1, -1, x.shape[-1])
            pairs.append((grouped.flatten(1), grouped[..., mask].flatten(1)))
    return _compare(pairs, real)


def _compare(pairs: list[tuple[Tensor, Tensor]], real: Tensor) -> Padding:
    """Compare the moments of each row with padding and without."""
    shifts, ratios = [], []
    for with_padding, without in pairs:
        whole, inner = Moments.of(with_padding, [1]), Moments.of(without, [1])
        var = inner.var().flatten()
        live = var > 0
        shifts.append((whole.mean - inner.mean).flatten()[live] / var[live].sqrt())
        ratios.append((whole.var().flatten()[live] / var[live]).clamp_min(1e-300).log())
    shift, ratio = torch.cat(shifts).square().mean().sqrt(), torch.cat(ratios).mean().exp()
    return Padding(1 - float(real.double().mean()), float(shift.nan_to_num()), float(ratio.nan_to_num(1.0)))
