"""Running statistics: how they move, and when they do not.

One rule in one place. They move once for each forward in training: not when the forward is a recomputation for
activation checkpointing, not inside `frozen_statistics`, once for all forwards inside `accumulate_statistics`, and not
in a channel whose batch statistics are not finite (NaN or infinite values in the batch, or fewer than two values).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gammabeta.moments import Moments, statistics_dtype


@dataclass(slots=True)
class GatheredMoments:
    """The merged moments of the forwards so far, in place: what tensors do not hold, a compiled forward can't add to.

    Attributes:
        count, mean, m2: those of `Moments`, (C,).
        forwards: int64 scalar, how many forwards gave theirs.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    forwards: Tensor

    @classmethod
    def none_yet(cls, channels: int, dtype: torch.dtype, device: torch.device) -> GatheredMoments:
        values = torch.zeros(2, channels, dtype=statistics_dtype(dtype), device=device)
        counts = torch.zeros(channels + 1, dtype=torch.int64, device=device)
        return cls(counts[:-1], values[0], values[1], counts[-1])

    def add(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Merges a forward's moments in; its channels that are not finite are left out, or one would spoil them all."""
        gather = torch.ops.gammabeta.gather_moments_ if torch.compiler.is_compiling() else _gather
        gather(self.count, self.mean, self.m2, self.forwards, mean, var, count)


@dataclass(slots=True)
class RunningStatistics:
    """The running mean and variance of every channel, with what their update needs; any of them may be absent.

    Attributes:
        mean, var: (C,), any floating dtype, moved in place; computed in float32 at the least.
        momentum: share of a batch in new = (1 − momentum)·old + momentum·batch, 0 to 1; None averages all batches that
            counted: momentum = 1/(num_batches_tracked − skipped_updates).
        num_batches_tracked: int64 scalar; counts the forwards in training. Needed where momentum is None.
        skipped_updates: int64 (C,); counts, channel by channel, the batches that were not finite.
        held: whether they stay as they are.
        gathered: where batches are merged for one update later, instead of an update now.
    """

    mean: Tensor | None = None
    var: Tensor | None = None
    momentum: float | None = 0.1
    num_batches_tracked: Tensor | None = None
    skipped_updates: Tensor | None = None
    held: bool = False
    gathered: GatheredMoments | None = None

    @property
    def tracked(self) -> bool:
        """Whether there are any that a forward would move."""
        return not self.held and (self.mean is not None or self.var is not None)

    def update(self, mean: Tensor, var: Tensor, count: Tensor | None = None) -> None:
        """Moves them, in place, towards a batch's mean and variance.

        Args:
            mean: (C,).
            var: (C,), divided by n where there is a count, and what they move towards is divided by n − 1; without one
                it is that already.
            count: n of each channel, int64, (C,).

        Source: Ioffe & Szegedy 2015, Algorithm 2, line 10, a moving average in place of the average; pytorch#90342.
        """
        if self.held or (self.mean is None and self.var is None):
            return
        if self.gathered is not None:
            assert count is not None, "moments cannot be merged without their count"
            self.gathered.add(mean, var, count)
            return
        # Compiled: through one op, since the check for a recomputation has to run each time and not while tracing.
        update = torch.ops.gammabeta.update_running_statistics_ if torch.compiler.is_compiling() else _update
        update(
            self.mean, self.var, self.num_batches_tracked, self.skipped_updates, mean, var, count, self.momentum
        )  # fmt: skip


def recomputing() -> bool:
    """Whether this forward runs inside a backward: activation checkpointing computes again what it has not kept."""
    return torch._C._current_graph_task_id() != -1


def _update(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    skipped_updates: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor | None,
    momentum: float | None,
) -> None:
    if recomputing():
        return
    if torch._C._are_functorch_transforms_active():
        _refuse_captured(running_mean if running_mean is not None else running_var, mean)
        _move(running_mean, running_var, num_batches_tracked, skipped_updates, mean, var, count, momentum)
        return
    _move_op(running_mean, running_var, num_batches_tracked, skipped_updates, mean, var, count, momentum)
    # A native kernel writes without telling autograd, which then would not notice that what it has saved has changed:
    # evaluation saves these two.
    torch.autograd.graph.increment_version(
        [t for t in (running_mean, running_var) if t is not None and not t.is_inference()]
    )


@torch.no_grad()
def _move(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    skipped_updates: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor | None,
    momentum: float | None,
) -> None:
    if count is not None:
        var = Moments(count, mean, var * count.to(var.dtype)).var(correction=1)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    # x − x is 0 for a finite x and NaN for any other.
    finite = (mean - mean) + (var - var) == 0
    if skipped_updates is not None:
        skipped_updates.add_(~finite)
    share: float | Tensor
    if momentum is not None:
        share = momentum
    else:
        assert num_batches_tracked is not None
        counted = num_batches_tracked if skipped_updates is None else num_batches_tracked - skipped_updates
        share = 1.0 / counted.clamp(min=1).to(mean.dtype)
    for running, batch in ((running_mean, mean), (running_var, var)):
        if running is not None:
            old = running.to(statistics_dtype(running.dtype))
            running.copy_(torch.where(finite, (1 - share) * old + share * batch, old))


@torch.no_grad()
def _gather(
    count: Tensor,
    mean: Tensor,
    m2: Tensor,
    forwards: Tensor,
    batch_mean: Tensor,
    batch_var: Tensor,
    batch_count: Tensor,
) -> None:
    if recomputing():
        return
    if torch._C._are_functorch_transforms_active():
        _refuse_captured(mean, batch_mean)
    forwards.add_(1)
    finite = (batch_mean - batch_mean) + (batch_var - batch_var) == 0
    n = torch.where(finite, batch_count, 0)
    batch_m2 = torch.where(finite, batch_var, 0.0) * n.to(batch_var.dtype)
    merged = Moments(count, mean, m2).merge(
        Moments(n, torch.where(finite, batch_mean, 0.0).to(mean.dtype), batch_m2.to(m2.dtype))
    )
    count.copy_(merged.count)
    mean.copy_(merged.mean)
    m2.copy_(merged.m2)


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
_STATE = (
    "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, Tensor(d!)? skipped_updates, "
    "Tensor mean, Tensor var, Tensor? count, float? momentum"
)
for _name, _arguments, _implementation in (
    # The rule whole, for compiled graphs; the movement alone, which a native kernel does in one go.
    ("update_running_statistics_", _STATE, _update),
    ("move_running_statistics_", _STATE, _move),
    (
        "gather_moments_",
        "Tensor(a!) count, Tensor(b!) mean, Tensor(c!) m2, Tensor(d!) forwards, Tensor batch_mean, Tensor batch_var, "
        "Tensor batch_count",
        _gather,
    ),
):
    _library.define(f"{_name}({_arguments}) -> ()", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gammabeta::{_name}", lambda *_: None, lib=_library)
_move_op = torch.ops.gammabeta.move_running_statistics_.default
