"""The processes of a group, each with its copy of a model: they gather values and fail together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The ranks of a group, or only this process.

    Args:
        operation: the operation's name, for messages.
        group: a process group; `dist.group.WORLD` is all processes.
        device: the device of the gathered values.
        alone: whether only this process counts, whatever the group.

    Raises:
        RuntimeError: torch.distributed is not initialized.
        ValueError: this process is not in the group.
    """

    def __init__(self, operation: str, group: Any, device: torch.device, *, alone: bool = False) -> None:
        self._operation = operation
        self._group = group
        self._alone = alone
        self.device = device
        if alone:
            self.size, self.rank = 1, 0
            return
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                f"{operation}: expected torch.distributed to be initialized, got that it is not: "
                "call torch.distributed.init_process_group first."
            )
        self.rank = dist.get_rank(group)
        if self.rank < 0:
            raise ValueError(f"{operation}: expected a group that this process is in, got one that it is not in.")
        self.size = dist.get_world_size(group)

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return each rank's values, of one shape and dtype, in the order of ranks."""
        if self._alone:
            return [values]
        out = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(out, values.contiguous(), group=self._group)
        return out

    def agree(self, failure: Exception | None, *numbers: int) -> list[list[int]]:
        """Return each rank's numbers, if no rank has failed.

        Raises:
            Exception: this rank's own failure.
            RuntimeError: another rank failed; this one does not wait for it.
        """
        told = [[int(failure is not None), *numbers]]
        if not self._alone:
            told = [t.tolist() for t in self.gather(torch.tensor(told[0], dtype=torch.int64, device=self.device))]
        if failure is not None:
            raise failure
        failed = [rank for rank, (has_failed, *_) in enumerate(told) if has_failed]
        if failed:
            raise RuntimeError(
                f"{self._operation}: expected every rank of the group to come through, got an exception on "
                f"{', '.join(f'rank {rank}' for rank in failed)}: see what it printed; nothing was changed."
            )
        return [rest for _, *rest in told]
