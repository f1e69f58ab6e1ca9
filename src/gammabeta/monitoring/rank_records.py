"""What the processes of a training tell each other while it is watched, through the store of the default group.

Nobody waits: each process writes at measured steps, in two slots in turn, and reads what is there when a diagnosis is
asked for, or when the watch ends. Compared is the last step that all have written.
"""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gammabeta.monitoring.watched import RankRecord

_watches = 0  # of this process, so that their keys differ; every process makes them in the same order


class Told:
    """The records of this process and of the others.

    Args:
        norms: BatchNorms with running statistics, by name.
        synced: the layers that share statistics, by name.
    """

    def __init__(self, norms: dict[str, nn.Module], synced: list[str]) -> None:
        global _watches
        _watches += 1
        self._prefix = f"gammabeta/watch/{_watches}"
        self._norms, self._synced = norms, synced
        self._written = 0
        self.active = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    def write(self, step: int, calls: dict[str, int]) -> None:
        """Tells the others the running statistics as they are now, and how often synchronized layers were called."""
        if not self.active or not dist.is_initialized():
            return
        statistics = {name: _statistics(module) for name, module in self._norms.items()}
        file = io.BytesIO()
        torch.save({"step": step, "calls": {n: calls[n] for n in self._synced}, "statistics": statistics}, file)
        _store().set(self._key(dist.get_rank(), self._written % 2), file.getvalue())
        self._written += 1

    def read(self) -> tuple[int, int, dict[int, RankRecord]] | None:
        """This rank, the step, and by rank what was said of it; None where there is no step that all have written."""
        if not self.active or not dist.is_initialized():
            return None
        store, rank = _store(), dist.get_rank()
        said: list[dict[int, Any]] = []
        for other in range(dist.get_world_size()):
            slots = [self._key(other, slot) for slot in (0, 1)]
            loaded = [torch.load(io.BytesIO(store.get(key)), weights_only=True) for key in slots if store.check([key])]
            said.append({one["step"]: one for one in loaded})
        common = set.intersection(*(set(one) for one in said))
        if not common:
            return None
        step = max(common)
        own = said[rank][step]["statistics"]
        records = {
            other: RankRecord(
                one[step]["calls"],
                {name: _distance(own[name], theirs) for name, theirs in one[step]["statistics"].items() if name in own},
            )
            for other, one in enumerate(said)
        }
        return rank, step, records

    def _key(self, rank: int, slot: int) -> str:
        return f"{self._prefix}/{rank}/{slot}"


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _statistics(module: nn.Module) -> Tensor:
    """Mean and variance with ε, by channel: (2, C)."""
    mean, var = module._buffers["running_mean"], module._buffers["running_var"]
    assert mean is not None
    assert var is not None
    return torch.stack((mean.detach().float(), var.detach().float() + module.eps)).cpu()  # type: ignore[operator]


def _distance(own: Tensor, other: Tensor) -> float:
    """√(Δμ²/σ² + ln²(σ'/σ)), root mean square over channels."""
    (mean, var), (other_mean, other_var) = own, other
    if own.shape != other.shape:
        return float("inf")
    squared = (mean - other_mean).square() / var + (0.5 * torch.log(other_var / var)).square()
    return float(squared.mean().sqrt())
