"""Merging of running statistics that drifted apart between ranks."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.introspection.where import Where, select
from gammabeta.moments import squared_distance
from gammabeta.running_statistics import counted_batches
from gammabeta.statistics import Running
from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.ranks import Ranks


def reconcile(model: nn.Module, group: Any = None, *, where: Where = None) -> Change:
    """Merge the running statistics of all ranks, weighted by the batches that each has counted.

    μ = Σ wᵣ·μᵣ and σ² = Σ wᵣ·(σᵣ² + (μᵣ − μ)²), channel by channel, so that the variance between means is included.
    σᵣ² are running variances as they are: each batch moved them by its variance divided by n − 1.
    The shares wᵣ are proportional to num_batches_tracked less the skipped batches, and equal where none were counted. A
    rank whose statistics of a channel are not finite does not count for that channel. Every rank gets the same bits.
    num_batches_tracked becomes the largest of the ranks'. Frozen layers (`Running`) are left alone. Frozen BatchNorms
    of other libraries are not looked at.

    Args:
        model: any module, the same on every rank of the group. Each of these ranks must call this.
        group: a process group; None is the default group, all processes.
        where: which norms: a glob on their names, a list, or a predicate `(name, module) -> bool`.

    Returns:
        The `Change`, whose undo concerns only this rank. Its numbers, by layer: `moved`, the distance that this rank's
        statistics moved, √(Δμ²/σ² + ln²(σ'/σ)), root mean square over channels; `spread`, the largest of the ranks'.

    Raises:
        RuntimeError: torch.distributed is not initialized.
        ValueError: ranks have different layers, or `where` chooses nothing. Nothing has changed on any rank.

    Source: Chan, Golub & LeVeque 1983, eq. 2.1.
    """
    with transaction("reconcile") as change:
        layers: dict[str, Any] = {}
        for name, module in select(model, where, _has_statistics, operation="reconcile", kind="norms with statistics"):
            if getattr(module, "statistics", None) == Running():
                change.leave(name, "it is frozen")
            else:
                layers[name] = module
        first: Any = next(iter(layers.values()), None)
        device = torch.device("cpu") if first is None else first.running_mean.device
        ranks = Ranks("reconcile", group, device)
        _check_alike(ranks, layers)
        if not layers:
            return change
        vectors = [_vector(layer, device) for layer in layers.values()]
        parts = [torch.split(whole, [v.shape[1] for v in vectors], 1) for whole in ranks.gather(torch.cat(vectors, 1))]
        for index, (name, layer) in enumerate(layers.items()):
            each = torch.stack([part[index] for part in parts])  # (ranks, 4, C)
            count, mean, var, tracked = each.unbind(1)
            finite = (mean - mean) + (var - var) == 0
            weight = torch.where(finite, torch.where(count.sum(0) > 0, count, 1.0), 0.0)
            total = weight.sum(0)
            share = weight / total.clamp(min=1)
            mean, var = torch.where(finite, mean, 0.0), torch.where(finite, var, 0.0)
            merged_mean = (share * mean).sum(0)
            merged_var = (share * (var + (mean - merged_mean).square())).sum(0)
            known = total > 0
            squared = squared_distance(merged_mean, merged_var + layer.eps, mean, var + layer.eps)
            far = torch.where(finite, squared, 0.0).mean(1).sqrt()
            for key, value in (("running_mean", merged_mean), ("running_var", merged_var)):
                before = layer._buffers[key]
                assert before is not None
                change.overwrite(layer, key, torch.where(known, value, before.to(value)))
            if layer._buffers.get("num_batches_tracked") is not None:
                change.overwrite(layer, "num_batches_tracked", tracked.max())
            numbers = {"moved": far[ranks.rank].item(), "spread": far.max().item()}
            change.note(name, f"merged over {ranks.size} ranks", **numbers)
    return change


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase) and module._buffers.get("running_mean") is not None


def _vector(layer: nn.Module, device: torch.device) -> Tensor:
    """Return counted batches, mean, variance and num_batches_tracked, by channel: (4, C)."""
    buffers = layer._buffers
    mean, var = buffers["running_mean"], buffers["running_var"]
    assert mean is not None
    assert var is not None
    tracked = buffers.get("num_batches_tracked")
    batches = torch.zeros_like(mean, dtype=torch.float64) if tracked is None else tracked.double().expand(mean.shape)
    counted = counted_batches(mean, tracked)
    return torch.stack((counted, mean.double(), var.double(), batches)).to(device)


def _check_alike(ranks: Ranks, layers: dict[str, nn.Module]) -> None:
    # First of all exchanges, because collectives of different sizes abort the process or wait forever.
    described = "\n".join(f"{name} {layer.num_features}" for name, layer in layers.items())
    digest = int.from_bytes(hashlib.sha256(described.encode()).digest()[:7], "big")
    told = ranks.gather(torch.tensor([digest, len(layers)], dtype=torch.int64, device=ranks.device))
    if any(not torch.equal(one, told[0]) for one in told):
        counts = ", ".join(f"rank {rank} has {int(one[1])}" for rank, one in enumerate(told))
        raise ValueError(
            f"reconcile: expected the same norms on every rank, got other names or channels: {counts}, among them "
            f"{', '.join(list(layers)[:3]) or 'none'} here."
        )
