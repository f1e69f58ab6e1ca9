"""Running statistics: how they move, and when they do not.

One rule in one place. Running statistics move once for each forward in training, with these exceptions:

    a recomputation for activation checkpointing     they do not move
    inside `frozen_statistics`                       they do not move
    inside `accumulate_statistics`                   they move once for all forwards
    batch statistics of a channel are not finite     that channel does not move (NaN or infinite values in the batch, or
                                                     fewer than two values)

A batch that moves no channel does not count in `num_batches_tracked`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor

from gammabeta._torch_private import backward_running, is_wrapped, transforms_active
from gammabeta.moments import Moments, statistics_dtype
from gammabeta.op_checks import ANY_NUMBER, Kind, OpCheck

# The attribute of a running mean that counts its skipped batches. torch's layer has no buffer for them, and code that
# walks, copies, stacks or zips a model's buffers must find those of torch. So the counts belong to the tensor that they
# are about: they are copied with it, and are gone when another tensor replaces it.
_SKIPPED = "_gammabeta_skipped"


def skipped_counts(running: Tensor | None) -> Tensor | None:
    """Return the counts that belong to a running mean (or variance), and make them where there are none yet.

    They are int64, (C + 2,): for each channel the number of batches that skipped it; the number of batches that skipped
    all channels; and the value of `num_batches_tracked` after the last update. Where it differs from the present one,
    somebody else has written the statistics (loaded a checkpoint, averaged them), and the counts do not apply to them.

    Returns None inside a torch.func transform and on the meta device.
    """
    if running is None:
        return None
    counts: Tensor | None = getattr(running, _SKIPPED, None)
    if counts is not None and counts.shape[0] == running.shape[0] + 2 and counts.device == running.device:
        return counts
    if running.is_meta or transforms_active():
        return None
    if torch.compiler.is_compiling() or running.is_inference():
        counts = torch.zeros(running.shape[0] + 2, dtype=torch.int64, device=running.device)
    else:  # a tensor made in inference mode could not be updated outside of it
        with torch.inference_mode(False):
            counts = torch.zeros(running.shape[0] + 2, dtype=torch.int64, device=running.device)
    setattr(running, _SKIPPED, counts)
    return counts


def forget_skipped(running: Tensor | None) -> Callable[[], None]:
    """Set the counts of skipped batches to 0, since the statistics start again or are replaced. Returns the undo."""
    counts: Tensor | None = getattr(running, _SKIPPED, None)
    if counts is None:
        return lambda: None
    setattr(running, _SKIPPED, torch.zeros_like(counts))
    return lambda: setattr(running, _SKIPPED, counts)


def carry_skipped(before: Tensor | None, after: Tensor | None) -> None:
    """Copy the counts to another tensor with the same statistics, moved or cast."""
    counts: Tensor | None = getattr(before, _SKIPPED, None)
    if counts is not None and after is not None and after is not before and not after.is_meta and not counts.is_meta:
        setattr(after, _SKIPPED, counts.to(after.device, copy=True))


def skipped_updates(running: Tensor, num_batches_tracked: Tensor | None) -> Tensor:
    """Return how many batches skipped each channel since the statistics were made, loaded or reset: int64, (C,)."""
    counts = _valid_counts(running, num_batches_tracked)
    if counts is None:
        return torch.zeros(running.shape, dtype=torch.int64, device=running.device)
    return counts[:-2].clone()


def counted_batches(running: Tensor, num_batches_tracked: Tensor | None) -> Tensor:
    """Return how many batches have moved each channel, as far as that is known: float64, (C,)."""
    if num_batches_tracked is None:
        return torch.zeros(running.shape, dtype=torch.float64, device=running.device)
    batches = _whole(num_batches_tracked).reshape(()).to(running.device, torch.float64).expand(running.shape)
    counts = _valid_counts(running, num_batches_tracked)
    return batches if counts is None else (batches - (counts[:-2] - counts[-2])).clamp(min=0)


def _valid_counts(running: Tensor, num_batches_tracked: Tensor | None) -> Tensor | None:
    counts: Tensor | None = getattr(running, _SKIPPED, None)
    if counts is None or running.is_meta or counts.shape[0] != running.shape[0] + 2:
        return None
    if num_batches_tracked is None:
        return counts
    if num_batches_tracked.is_meta:
        return counts
    return counts if _last(num_batches_tracked).to(counts.device).equal(counts[-1]) else None


def _last(num_batches_tracked: Tensor) -> Tensor:
    return _whole(num_batches_tracked.detach()).reshape(()).to(torch.int64)


def _whole(tensor: Tensor) -> Tensor:
    """Return the tensor as a plain one: the counts are plain even where buffers are DTensors."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


@dataclass(slots=True)
class GatheredMoments:
    """The merged moments of the forwards so far, updated in place, since a compiled forward can only add to tensors.

    Attributes:
        count, mean, m2: those of `Moments`, (C,).
        forwards: number of forwards that were merged, int64 scalar.
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
        """Merge a forward's moments in, without the channels that are not finite, which would spoil all later ones."""
        gather = torch.ops.gammabeta.gather_moments_ if torch.compiler.is_compiling() else _gather
        gather(self.count, self.mean, self.m2, self.forwards, mean, var, count)


@dataclass(slots=True)
class RunningStatistics:
    """The running mean and variance of every channel, with what their update needs; any of them may be absent.

    Attributes:
        mean, var: (C,), any floating dtype, updated in place; the arithmetic is in float32 or float64.
        momentum: weight of a batch in new = (1 − momentum)·old + momentum·batch, 0 to 1. None averages all batches that
            moved a channel, channel by channel; without num_batches_tracked it moves nothing.
        num_batches_tracked: one value of any dtype; counts the forwards in training that moved a channel.
        skipped: the counts of `skipped_counts`. Without them, a channel that some batches skipped counts as if every
            batch that moved any channel had moved it.
        held: whether updates do nothing.
        gathered: where batches are merged for one later update, instead of an update now.
    """

    mean: Tensor | None = None
    var: Tensor | None = None
    momentum: float | None = 0.1
    num_batches_tracked: Tensor | None = None
    skipped: Tensor | None = None
    held: bool = False
    gathered: GatheredMoments | None = None

    @property
    def tracked(self) -> bool:
        """Whether there are any statistics that a forward would move."""
        return not self.held and (self.mean is not None or self.var is not None)

    def update(self, mean: Tensor, var: Tensor, count: Tensor | None = None) -> None:
        """Move the statistics in place towards a batch's mean and variance.

        Args:
            mean: (C,).
            var: (C,). With a count it is the variance divided by n, and the statistics move towards that divided by
                n − 1. Without one it is the variance divided by n − 1.
            count: n of each channel, int64, (C,).

        Source: Ioffe & Szegedy 2015, Algorithm 2, line 10, a moving average in place of the average; pytorch#90342.
        """
        if self.held or (self.mean is None and self.var is None):
            return
        if self.gathered is not None:
            assert count is not None, "moments cannot be merged without their count"
            self.gathered.add(mean, var, count)
            return
        update: Callable[..., None] = _update
        tracked = self.num_batches_tracked
        if torch.jit.is_tracing() or (torch.compiler.is_compiling() and transforms_active()):
            update = _move  # a traced graph has only standard ops, and transforms have no rule for ours
        elif torch.compiler.is_compiling():
            # By one op, since the check for a recomputation has to run in each call, not while tracing.
            update = torch.ops.gammabeta.update_running_statistics_
            # A count left on the meta device: no op takes both devices.
            if tracked is not None and tracked.device != mean.device:
                tracked.add_(1)
                tracked = None
        update(self.mean, self.var, tracked, self.skipped, mean, var, count, self.momentum)


def recomputing() -> bool:
    """Return whether this forward recomputes what activation checkpointing has not kept.

    A recomputation runs inside a backward: in the backward of an autograd Function (compiled code has one), in an
    unpack hook of torch.utils.checkpoint, or in compiled autograd. What a tensor's hook computes there is new, and
    so is what runs outside a backward. A Function's backward that computes on new data cannot be distinguished.
    """
    return backward_running() and _inside_recomputation()


def _inside_recomputation() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file, function = frame.f_code.co_filename.replace("\\", "/"), frame.f_code.co_name
        if function == "_engine_run_backward" and file.endswith("torch/autograd/graph.py"):
            return False
        if function == "apply" and file.endswith("torch/autograd/function.py"):
            return True
        if file.endswith("torch/utils/checkpoint.py") or "torch/_dynamo/compiled_autograd" in file:
            return True
        frame = frame.f_back
    return False


def _update(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    skipped: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor | None,
    momentum: float | None,
) -> None:
    if recomputing():
        return
    if transforms_active():
        _refuse_captured(running_mean if running_mean is not None else running_var, mean)
        _move(running_mean, running_var, num_batches_tracked, skipped, mean, var, count, momentum)
        return
    move: Callable[..., None] = _move_op
    # A user's tensor class handles torch's ops, but may not handle ours.
    if type(mean) is not Tensor or (num_batches_tracked is not None and not _usual(num_batches_tracked, mean)):
        move = _move
    move(running_mean, running_var, num_batches_tracked, skipped, mean, var, count, momentum)
    # A native kernel writes without telling autograd. Evaluation saves these two for its backward, and autograd would
    # not notice that they have changed.
    torch.autograd.graph.increment_version(
        [t for t in (running_mean, running_var) if t is not None and not t.is_inference()]
    )


def _usual(num_batches_tracked: Tensor, mean: Tensor) -> bool:
    """Return whether the count is as torch's layers make it.

    It may be anything else that has an `add_`: averaging checkpoints makes it floating point, and a model built on the
    meta device may have left it there.
    """
    return (
        num_batches_tracked.dtype is torch.int64
        and num_batches_tracked.ndim == 0
        and num_batches_tracked.device == mean.device
    )


@torch.no_grad()
def _move(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    skipped: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor | None,
    momentum: float | None,
) -> None:
    mean, var = mean.to(statistics_dtype(mean.dtype)), var.to(statistics_dtype(var.dtype))
    if count is not None:
        var = Moments(count, mean, var * count.to(var.dtype)).var(correction=1)
    # x − x is 0 for a finite x and NaN for any other.
    finite = (mean - mean) + (var - var) == 0
    counts = finite.any() if finite.numel() > 0 else torch.ones_like(finite.any())
    known = num_batches_tracked is not None and not num_batches_tracked.is_meta
    if skipped is not None:
        if num_batches_tracked is not None and known:
            skipped.mul_(_last(num_batches_tracked).to(skipped.device) == skipped[-1])
        skipped[:-2].add_(~finite)
        skipped[-2].add_(~counts)
    if num_batches_tracked is not None:
        _count(num_batches_tracked, counts)
        if skipped is not None and known:
            skipped[-1].copy_(_last(num_batches_tracked))
    share: float | Tensor
    if momentum is not None:
        share = momentum
    elif num_batches_tracked is None:
        return  # as torch's layer does, which has no weight for the batch then
    else:
        batches = num_batches_tracked.reshape(()).to(mean)
        missed = 0 if skipped is None else skipped[:-2] - skipped[-2]
        share = 1.0 / (batches - missed).clamp(min=1)
    for running, batch in ((running_mean, mean), (running_var, var)):
        if running is not None:
            old = running.to(statistics_dtype(running.dtype))
            running.copy_(torch.where(finite, (1 - share) * old + share * batch, old))


def _count(num_batches_tracked: Tensor, counts: Tensor) -> None:
    if is_wrapped(counts) and not is_wrapped(num_batches_tracked):
        # One count for all calls of a transform: like torch's layer, it cannot say which of them counted.
        num_batches_tracked.add_(1)
    else:
        num_batches_tracked.add_(counts.to(num_batches_tracked.device, num_batches_tracked.dtype))


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
    if transforms_active():
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
    """Raise before anything has changed: a transform would move a captured buffer for one of its calls, or none."""
    if running is not None and is_wrapped(batch) and not is_wrapped(running):
        raise RuntimeError(
            "running statistics: expected buffers that are arguments of the torch.func transform, got captured ones: "
            "pass the buffers in through torch.func.functional_call, or use eval() or track_running_stats=False."
        )


_library = torch.library.Library("gammabeta", "FRAGMENT")
_STATE = (
    "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, Tensor(d!)? skipped, "
    "Tensor mean, Tensor var, Tensor? count, float? momentum"
)
_COUNTING: dict[str, Kind] = {"num_batches_tracked": ANY_NUMBER}
for _name, _arguments, _implementation, _kinds in (
    # The whole rule, for compiled graphs; only the movement, which a native kernel does in one call.
    ("update_running_statistics_", _STATE, _update, _COUNTING),
    ("move_running_statistics_", _STATE, _move, {}),
    (
        "gather_moments_",
        "Tensor(a!) count, Tensor(b!) mean, Tensor(c!) m2, Tensor(d!) forwards, Tensor batch_mean, Tensor batch_var, "
        "Tensor batch_count",
        _gather,
        {},
    ),
):
    _schema = f"{_name}({_arguments}) -> ()"
    _check = OpCheck(_schema, **_kinds)
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, _check.checked(_implementation, memory=True), "CompositeExplicitAutograd")
    torch.library.register_fake(f"gammabeta::{_name}", _check.checked(lambda *_: None), lib=_library)
_move_op = torch.ops.gammabeta.move_running_statistics_.default
