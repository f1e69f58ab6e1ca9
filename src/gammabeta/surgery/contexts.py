"""Contexts that hold running statistics, or move them once for several forwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gammabeta.layers.batch_norm import _BatchNorm
from gammabeta.layers.instance_norm import _InstanceNorm
from gammabeta.moments import Moments
from gammabeta.running_statistics import GatheredMoments, RunningStatistics, skipped_counts
from gammabeta.statistics import Running
from gammabeta.subclasses import parts as subclasses

_TORCH = nn.modules.batchnorm._NormBase
_BUFFERS = "running_mean", "running_var", "num_batches_tracked"


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Hold the model's running statistics during the block; everything else behaves as in its mode.

    Use it for forwards that are not part of training: a summary, a teacher's or an adversary's pass, a gradient
    penalty. Layers of torch.nn are held too: their `track_running_stats` is switched off, and their buffers are
    restored bit by bit. Layers whose source keeps the statistics (`Running`) are not affected.

    Args:
        model: any module.

    Example:
        with gammabeta.frozen_statistics(model), torch.no_grad():
            targets = model(other_batch)
    """
    ours = [m for m in model.modules() if isinstance(m, (_BatchNorm, _InstanceNorm))]
    held = [(m, m.holds_statistics) for m in ours]
    others = [m for m in model.modules() if isinstance(m, _TORCH) and not isinstance(m, (_BatchNorm, _InstanceNorm))]
    tracked = [(m, m.track_running_stats) for m in others]
    kept = [(b, b.clone()) for m in others for b in _buffers(m)]
    for ours_module, _ in held:
        ours_module.holds_statistics = True
    for module, _ in tracked:
        # BatchNorm in evaluation still uses its buffers. InstanceNorm moves its own, which are restored.
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
    try:
        yield
    finally:
        for ours_module, before in held:
            ours_module.holds_statistics = before
        for module, was in tracked:
            module.track_running_stats = was
        with torch.no_grad():
            for buffer, value in kept:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def accumulate_statistics(model: nn.Module) -> Iterator[None]:
    """Move the running statistics once, on leaving, by the exact moments of all forwards in the block together.

    Use it for gradient accumulation: the micro-batches of an optimizer step count as one batch, though each is still
    normalized by its own statistics. `num_batches_tracked` counts one. A channel that is not finite in a micro-batch is
    left out of the merge; `skipped_updates` counts a channel that was finite in none of them. An exception inside
    discards the gathered moments.

    Args:
        model: any module whose BatchNorms are gammabeta's. InstanceNorm's averages over samples move as usual.

    Raises:
        ValueError: a BatchNorm is not gammabeta's, and would move at every forward.

    Example:
        with gammabeta.accumulate_statistics(model):
            for inputs, targets in micro_batches:
                loss(model(inputs), targets).backward()
        optimizer.step()

    Source: Chan, Golub & LeVeque 1983, eq. 2.1.
    """
    foreign = [
        f"{name} ({type(m).__name__})"
        for name, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
        and not isinstance(m, _BatchNorm)
        and m.running_mean is not None
        and m.track_running_stats
    ]
    if foreign:
        raise ValueError(
            f"accumulate_statistics: expected BatchNorms of gammabeta, got {', '.join(foreign[:3])}"
            f"{f' and {len(foreign) - 3} more' if len(foreign) > 3 else ''}, whose running statistics would move at "
            "every forward: gammabeta.adopt(model) first."
        )
    gathered = []
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats and not isinstance(module.statistics, Running):
            running = module.running_mean if module.running_mean is not None else module.running_var
            if running is not None:
                moments = GatheredMoments.none_yet(running.shape[0], running.dtype, running.device)
                gathered.append((module, module.gathered, moments))
                module.gathered = moments
    try:
        yield
    except BaseException:
        for module, before, _ in gathered:
            module.gathered = before
        raise
    for module, before, moments in gathered:
        module.gathered = before
        if moments.forwards.item() > 0:
            running = module.running_var if module.running_mean is None else module.running_mean
            merged = Moments(moments.count, moments.mean, moments.m2)
            statistics = RunningStatistics(
                module.running_mean, module.running_var, module.momentum, module.num_batches_tracked,
                skipped_counts(running), gathered=before,
            )  # fmt: skip
            subclasses.update(statistics, merged.mean, merged.var(), merged.count)


def _buffers(module: nn.Module) -> list[Tensor]:
    return [buffer for name in _BUFFERS if (buffer := getattr(module, name, None)) is not None]
