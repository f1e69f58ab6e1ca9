"""Records that the processes of a watched training exchange, through the store of the default process group.

No process waits. Each writes at measured steps, into two slots in turn, and reads what is there when a diagnosis is
asked for or the watch ends. Compared is the last step that all have written.
"""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gammabeta._torch_private import default_store
from gammabeta.moments import squared_distance
from gammabeta.monitoring.watched import RankRecord

# Watches of this process, so that their keys differ: every process makes them in the same order.
_watches = 0


class RankRecords:
    """Records of this process and of the others.

    Args:
        norms: BatchNorms with running statistics, by name.
        synced: names of the layers that share statistics.
    """

    def __init__(self, norms: dict[str, nn.Module], synced: list[str]) -> None:
        global _watches
        _watches += 1
        self._prefix = f"gammabeta/watch/{_watches}"
        self._norms, self._synced = norms, synced
        self._written = 0
        self.active = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    def write(self, step: int, calls: dict[str, int]) -> None:
        """Write this process's running statistics, and how often its synchronized layers were called so far."""
        if not self.active or not dist.is_initialized():
            return
        statistics = {name: _statistics(module) for name, module in self._norms.items()}
        file = io.BytesIO()
        torch.save({"step": step, "calls": {n: calls[n] for n in self._synced}, "statistics": statistics}, file)
        _store().set(self._key(dist.get_rank(), self._written % 2), file.getvalue())
        self._written += 1

    def read(self) -> tuple[int, int, dict[int, RankRecord]] | None:
        """Compare the processes at the last step that all have written.

        Returns:
            This rank, the step, and the records by rank; None if there is no such step.
        """
        if not self.active or not dist.is_initialized():
            return None
        store, rank = _store(), dist.get_rank()
        written: list[dict[int, Any]] = []  # by rank and step
        for other in range(dist.get_world_size()):
            slots = [self._key(other, slot) for slot in (0, 1)]
            loaded = [torch.load(io.BytesIO(store.get(key)), weights_only=True) for key in slots if store.check([key])]
            written.append({one["step"]: one for one in loaded})
        common = set.intersection(*(set(steps) for steps in written))
        if not common:
            return None
        step = max(common)
        own = written[rank][step]["statistics"]
        records = {
            other: RankRecord(
                steps[step]["calls"],
                {
                    name: _distance(own[name], theirs)
                    for name, theirs in steps[step]["statistics"].items()
                    if name in own
                },
            )
            for other, steps in enumerate(written)
        }
        return rank, step, records

    def _key(self, rank: int, slot: int) -> str:
        return f"{self._prefix}/{rank}/{slot}"


def _store() -> Any:
    return default_store()


def _statistics(module: nn.Module) -> Tensor:
    """Return the running mean and the running variance plus ε, by channel: (2, C)."""
    mean, var = module._buffers["running_mean"], module._buffers["running_var"]
    assert mean is not None
    assert var is not None
    return torch.stack((mean.detach().float(), var.detach().float() + module.eps)).cpu()  # type: ignore[operator]


def _distance(own: Tensor, other: Tensor) -> float:
    """Return how far another process's statistics are from this one's, in this one's standard deviations."""
    if own.shape != other.shape:
        return float("inf")
    (mean, var), (other_mean, other_var) = own, other
    return float(squared_distance(mean, var, other_mean, other_var).mean().sqrt())
