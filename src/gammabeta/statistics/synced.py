"""The batches of all processes as one, as the source of statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gammabeta import arguments
from gammabeta.autograd import channel_moments, channel_norm_given
from gammabeta.distributed import agreement
from gammabeta.distributed.process_groups import Group, GroupSetting, Peers, group_setting, peers_of
from gammabeta.functional import NormCall, normalize_by_batch
from gammabeta.moments import Moments


@dataclass(frozen=True)
class Synced:
    """μ and σ² (divided by n) of the batches of all processes together, as if one process had them all.

    They are exact for batches of different sizes: each batch counts by its number of unmasked values. One without
    values, of shape (0, C, …), adds nothing, but its process still has to call the layer. A forward makes one
    all-gather of 2C + 2 values (count, mean, m2; merged by Chan's formula), a backward one all-reduce of 2C. With a
    group of one, or no process group, it is `Batch`. The running statistics get the same values on every process.

    Gradients of x are those of the sum of all processes' losses. Gradients of γ and β are each process's own sums,
    which DistributedDataParallel and FSDP average as they do those of every other parameter.

    With GAMMABETA_DEBUG=1 in the environment, processes that disagree raise an error instead of waiting for each other
    (`gammabeta.distributed.agreement`).

    Args:
        group: None for the default group (all processes), a `torch.distributed.ProcessGroup`, ranks, or a group's
            name. Of a group only its ranks are kept, so that the layer can be copied and pickled. In another process,
            make the group of these ranks before the layer is called: it cannot be made there, since processes outside
            it have to take part. `gammabeta.statistics.groups(size)` makes groups.

    Raises:
        TypeError, ValueError: `group` is none of these.
        RuntimeError: in forward, this process has no such group, or is not in it; several processes inside a torch.func
            transform.

    Source: Chan, Golub & LeVeque 1983, eq. 2.1; Peng et al. 2018 (1711.07240).
    """

    group: Group = None
    _name: str | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        group, name = group_setting("Synced", self.group)
        object.__setattr__(self, "group", group)
        object.__setattr__(self, "_name", name)

    def __copy__(self) -> Synced:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Synced:
        return self

    def __reduce__(self) -> tuple[type[Synced], tuple[Any, ...]]:
        return Synced, (self.group,)  # the name is this process's own

    def peers(self) -> Peers | None:
        """Return the processes that take part; None where this one is alone."""
        return peers_of("Synced", GroupSetting(self.group, self._name))

    def normalize(self, call: NormCall) -> Tensor:
        x, running = call.x, call.running
        peers = self.peers()
        if peers is None or x.shape[1] == 0:
            return normalize_by_batch(call)
        arguments.check_eps("batch_norm", call.eps, positive=True)
        finish = call.finish.of_channels(x, call.eps)
        moments = moments_of_all(x, finish.mask, peers)
        y = channel_norm_given(x, moments, call.affine, finish, peers)
        # The variance is NaN, and so skipped, where all processes together have one value or none.
        running.update(moments.mean, moments.var(), moments.count)
        return y


def moments_of_all(x: Tensor, mask: Tensor | None, peers: Peers) -> Moments:
    """Merge the moments of every process's x, by one all-gather; in debug mode, raise where processes disagree."""
    if not agreement.WAIT or torch.compiler.is_compiling():
        return channel_moments(x, mask, peers)
    agreement.check(peers, x)
    moments = channel_moments(x, mask, peers)
    agreement.check_count(peers, moments.count)
    return moments
