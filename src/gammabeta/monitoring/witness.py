"""Whether a model's parameters change between the forwards of one step, as in SAM and L-BFGS."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from gammabeta._torch_private import local_part

# At most this many parameters, values of each, and forwards per step are looked at.
_PARAMETERS, _VALUES, _FORWARDS = 64, 16, 8


class Witness:
    """A few values of many parameters, kept at each forward of a measured step and compared at its end.

    Values are compared, since a write through `.data` leaves no other trace.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def add(self, model: nn.Module) -> None:
        """Keep the values with which a forward begins."""
        if len(self._kept) >= _FORWARDS:
            return
        floating = [p for p in model.parameters() if p.is_floating_point() and not nn.parameter.is_lazy(p)]
        chosen = floating[:: max(1, -(-len(floating) // _PARAMETERS))]
        parts = [_thinned(local_part(p).detach()) for p in chosen]
        parts = [part for part in parts if part.device == parts[0].device]
        if parts:
            self._kept.append(torch.cat(parts))

    def measure(self) -> Tensor | None:
        """Return how many forwards of the step began with other parameters than the one before; forget them.

        Returns:
            A scalar; None if the step had a single forward.
        """
        kept, self._kept = self._kept, []
        if len(kept) < 2:
            return None
        changed = [
            (one != other).any() if one.shape == other.shape else torch.ones((), dtype=torch.bool, device=one.device)
            for one, other in itertools.pairwise(kept)
        ]
        return torch.stack(changed).sum()


def _thinned(values: Tensor) -> Tensor:
    flat = values.reshape(-1) if values.is_contiguous() else values.flatten()
    return flat[:: max(1, -(-flat.numel() // _VALUES))].float()
