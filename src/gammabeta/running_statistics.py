"""Running statistics: how they move, and when they do not.

One rule in one place. They move once for each forward in training: not when the forward is a recomputation for
activation checkpointing, and not in a channel whose batch statistics are not finite (NaN or infinite values in the
batch, or fewer than two values).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gammabeta.moments import statistics_dtype


@dataclass
class RunningStatistics:
    """The running mean and variance of every channel, with what their update needs; any of them may be absent.

    Attributes:
        mean, var: (C,), any floating dtype, moved in place; computed in float32 at the least.
        momentum: share of a batch in new = (1 − momentum)·old + momentum·batch, 0 to 1; None averages all batches that
            counted: momentum = 1/(num_batches_tracked − skipped_updates).
        num_batches_tracked: int64 scalar; counts the forwards in training. Needed where momentum is None.
        skipped_updates: int64 (C,); counts, channel by channel, the batches that were not finite.
    """

    mean: Tensor | None = None
    var: Tensor | None = None
    momentum: float | None = 0.1
    num_batches_tracked: Tensor | None = None
    skipped_updates: Tensor | None = None

    def update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        """Moves them, in place, towards a batch's mean and variance (divided by n − 1), both (C,).

        Source: Ioffe & Szegedy 2015, Algorithm 2, line 10, a moving average in place of the average; pytorch#90342.
        """
        # Compiled: through one op, since the check for a recomputation has to run each time and not while tracing.
        update = torch.ops.gammabeta.update_running_statistics_ if torch.compiler.is_compiling() else _update
        update(self.mean, self.var, self.num_batches_tracked, self.skipped_updates, mean, unbiased_var, self.momentum)


def recomputing() -> bool:
    """Whether this forward runs inside a backward: activation checkpointing computes again what it has not kept."""
    return torch._C._current_graph_task_id() != -1


@torch.no_grad()
def _update(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    skipped_updates: Tensor | None,
    mean: Tensor,
    unbiased_var: Tensor,
    momentum: float | None,
) -> None:
    if recomputing():
        return
    transformed = torch._C._are_functorch_transforms_active()
    if transformed:
        _refuse_captured(running_mean if running_mean is not None else running_var, mean)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    statistics_of = ((running_mean, mean), (running_var, unbiased_var))
    if momentum is not None and mean.device.type == "cpu" and not transformed:
        # One look at all channels; where reading a value does not wait for a device this is what usually suffices.
        tracked = all(r is None or r.dtype == batch.dtype for r, batch in statistics_of)
        if tracked and math.isfinite(torch.dot(mean, unbiased_var)):
            for running, batch in statistics_of:
                if running is not None:
                    running.lerp_(batch, momentum)
            return
    # x − x is 0 for a finite x and NaN for any other.
    finite = (mean - mean) + (unbiased_var - unbiased_var) == 0
    if skipped_updates is not None:
        skipped_updates.add_(~finite)
    share: float | Tensor
    if momentum is not None:
        share = momentum
    else:
        assert num_batches_tracked is not None
        counted = num_batches_tracked if skipped_updates is None else num_batches_tracked - skipped_updates
        share = 1.0 / counted.clamp(min=1).to(mean.dtype)
    for running, batch in statistics_of:
        if running is not None:
            old = running.to(statistics_dtype(running.dtype))
            running.copy_(torch.where(finite, (1 - share) * old + share * batch, old))


def _refuse_captured(running: Tensor | None, batch: Tensor) -> None:
    """Before anything has changed: a transform would move a captured buffer for one of its calls, or for none."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    if running is not None and wrapped(batch) and not wrapped(running):
        raise RuntimeError(
            "batch_norm: expected running statistics that are arguments of the torch.func transform, got "
            "captured ones: "
            "pass the buffers in through torch.func.functional_call, or use eval() or track_running_stats=False."
        )


_library = torch.library.Library("gammabeta", "FRAGMENT")
_library.define(
    "update_running_statistics_(Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, "
    "Tensor(d!)? skipped_updates, Tensor mean, Tensor unbiased_var, float? momentum) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("update_running_statistics_", _update, "CompositeExplicitAutograd")
torch.library.register_fake("gammabeta::update_running_statistics_", lambda *_: None, lib=_library)
