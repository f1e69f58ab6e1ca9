"""Parts of a model that look like moving averages of another part, as a momentum encoder beside the one that trains."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.record import Norm, Record

# Cosine of the angle between a part's weights and those of the part that it may average. Weights that were
# initialized or trained apart are near 0. An average is near 1.
_ALIKE = 0.5


class Twins:
    """The parts of a model that train, by their structure.

    Args:
        record: the record, with a model.
    """

    def __init__(self, record: Record) -> None:
        assert record.model is not None
        self._modules = dict(record.model.named_modules())
        held = {id(p) for optimizer in record.optimizers for group in optimizer.param_groups for p in group["params"]}
        known = any(id(p) in held for p in record.model.parameters())
        self._trained = {id(p) for p in record.model.parameters() if p.requires_grad and (not known or id(p) in held)}
        self._parts: dict[tuple[object, ...], list[str]] | None = None
        self._found: dict[tuple[str, bool], str | None] = {}

    def of(self, norm: Norm, *, cut_off: bool = False) -> tuple[str, str] | None:
        """Return the part around a norm that looks like an average, and the part that it averages; None without one.

        Both have the same classes, parameter names and shapes. Nothing of the one trains, the other trains, and their
        weights are alike.

        Args:
            norm: a norm that does not train.
            cut_off: whether the forward ran it with gradients off, so that its part does not train whatever requires a
                gradient there.
        """
        if norm.module is None:
            return None
        part, found = norm.name, None
        while part:
            part = part.rpartition(".")[0]
            if (part, cut_off) not in self._found:
                self._found[part, cut_off] = self._twin(part, cut_off) if part else None
            twin = self._found[part, cut_off]
            found = (part, twin) if twin is not None else found  # the largest part that has one
        return found

    def _twin(self, part: str, cut_off: bool) -> str | None:
        module = self._modules.get(part)
        if module is None or (not cut_off and any(id(p) in self._trained for p in module.parameters())):
            return None
        own = {id(p) for p in module.parameters()}
        for name in self._like(module):
            other = self._modules[name]
            others = {id(p) for p in other.parameters()}
            if others & self._trained and not others & own and _alike(module, other):
                return name
        return None

    def _like(self, module: nn.Module) -> Iterator[str]:
        if self._parts is None:
            self._parts = {}
            for name, other in self._modules.items():
                if name:
                    self._parts.setdefault(_structure(other), []).append(name)
        return iter(self._parts.get(_structure(module), ()))


def _structure(module: nn.Module) -> tuple[object, ...]:
    classes = tuple((name, type(child)) for name, child in module.named_modules())
    shapes = ((name, None if nn.parameter.is_lazy(p) else tuple(p.shape)) for name, p in module.named_parameters())
    return (classes, tuple(shapes))


@torch.no_grad()
def _alike(module: nn.Module, other: nn.Module) -> bool:
    """Return whether the weights of two modules of one structure point the same way; γ and β always do."""
    inner = sizes = others = 0.0
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        if p.ndim < 2 or p.is_meta or q.is_meta or nn.parameter.is_lazy(p) or nn.parameter.is_lazy(q):
            continue
        a, b = _flat(p), _flat(q).to(p.device)
        inner, sizes, others = inner + float(a @ b), sizes + float(a @ a), others + float(b @ b)
    return bool(inner > _ALIKE * (sizes * others) ** 0.5)


def _flat(parameter: Tensor) -> Tensor:
    return parameter.detach().flatten().float()
