"""Which parts of a model the optimizers train."""

from __future__ import annotations

from torch import nn

from gammabeta.diagnostics.record import Norm, Record


class OptimizedAround:
    """What of a model is in its optimizers, asked from the place of a norm.

    Args:
        record: the record, with a model.
    """

    def __init__(self, record: Record) -> None:
        assert record.model is not None
        self._held = {
            id(p) for optimizer in record.optimizers for group in optimizer.param_groups for p in group["params"]
        }
        self._of_norms = {id(p) for norm in record.norms if norm.module is not None for p in norm.module.parameters()}
        self._modules = dict(record.model.named_modules(remove_duplicate=False))
        # Optimizers of another model, or a fresh copy of this one, say nothing.
        self._known = any(id(p) in self._held for p in record.model.parameters())

    def share(self, norm: Norm) -> float | None:
        """Return the share of the weights around a norm that is in an optimizer, by elements.

        Around it means in the smallest module around it that has weights other than norms'. None if there is none.
        """
        where = norm.name
        while where:
            where = where.rpartition(".")[0]
            parameters = [p for p in self._modules[where].parameters() if not nn.parameter.is_lazy(p)]
            others = [p for p in parameters if id(p) not in self._of_norms]
            total = sum(p.numel() for p in others)
            if total:
                return float(sum(p.numel() for p in others if id(p) in self._held) / total)
        return None

    def is_trained(self, norm: Norm) -> bool:
        """Whether most of the weights around the norm are in an optimizer."""
        share = self.share(norm)
        return share is not None and share > 0.5

    def is_left_out(self, norm: Norm) -> bool:
        """Whether optimizers train the model, but neither the norm nor most of the weights around it."""
        share = self.share(norm)
        if not self._known or norm.module is None or share is None or share > 0.5:
            return False
        own = [id(p) in self._held for p in norm.module.parameters()]
        # A norm without γ and β may belong to a head that trains, as the first layer on features that do not.
        return not any(own) if own else share == 0
