"""How large a model's parameters are from one look to the next, to tell updates that made them explode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from gammabeta._torch_private import local_part
from gammabeta.introspection.observe import tensors_in
from gammabeta.monitoring.watched import Explosion

# Parameters exploded if the largest is this many times the largest before, and is above the smallest that can matter;
# or wherever it is close enough to float32's end that a product of two is not finite.
_GROWTH, _LEAST, _BEYOND = 1e4, 1e3, 1e18
# No recipe has a learning rate as high.
_HIGH = 100.0


class ParameterSizes:
    """Largest absolute values of parameters, looked at in measured steps, and the learning rate of every step.

    Args:
        model: the model.
        optimizers: those whose learning rates are noted.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._model, self._optimizers = model, optimizers
        self._sizes: dict[str, float] = {}
        self._found: Explosion | None = None
        self._rate: tuple[float, int] | None = None
        self.looked = -1  # the last step after which the parameters were seen to be finite

    def begin(self, step: int) -> None:
        """Look at the parameters before a step."""
        self._sizes, self._found, self._rate, self.looked = self._measured(), None, None, step - 1

    def note_rate(self, step: int) -> None:
        """Note the learning rate of a step that is ending; one that is kept on a device is left there."""
        rates = [group.get("lr") for optimizer in self._optimizers for group in optimizer.param_groups]
        for rate in (float(rate) for rate in rates if isinstance(rate, int | float)):
            if self._rate is None or math.isnan(rate) or rate > self._rate[0]:
                self._rate = (rate, step)

    def look(self, step: int) -> None:
        """Look at the parameters, all finite, at the end of a step; an explosion counts for as long as it lasts."""
        sizes = self._measured()
        found = self._explosion(sizes, step)
        self._found = found and (self._found or found)
        self.looked = step
        if self._found is None:
            self._sizes, self._rate = sizes, None

    def exploded(self, last: int) -> Explosion | None:
        """Return what made the parameters explode up to the update of a step; None if they did not."""
        return self._found or self._explosion(self._measured(), last)

    def overflowed(self, names: Iterable[str], last: int) -> Explosion | None:
        """Return the updates that left parameters not finite; None if it was their gradients.

        Gradients that were not finite tell only of the last update.
        """
        names, first = list(names), min(self.looked + 1, last)
        if self._found is not None or not names:
            return self._found
        finite = self._gradients_were_finite(names)
        high = self._rate is not None and not self._rate[0] < _HIGH
        if not (finite or (high and (finite is None or first < last))):
            return None
        rate, at = self._rate or (None, None)
        before = self._sizes.get(names[0], math.nan)
        return Explosion(names[0], before, math.inf, first, last, rate, at, finite_gradients=bool(finite))

    def _gradients_were_finite(self, names: Iterable[str]) -> bool | None:
        """Return whether the gradients of an update were finite, by themselves or the optimizer's state; else None."""
        parameters = dict(self._model.named_parameters())
        held: list[Tensor] = []
        for name in names:
            parameter = parameters[name]
            held += [] if parameter.grad is None else [parameter.grad]
            held += [t for o in self._optimizers for t in tensors_in(dict(o.state.get(parameter, {}))) if t.ndim]
        values = [size for tensor in held if (size := _largest(tensor)) is not None]
        sizes = torch.stack([value.cpu() for value in values]).tolist() if values else []
        if not all(map(math.isfinite, sizes)):
            return False
        return True if any(sizes) else None  # zeroed gradients tell nothing

    def _explosion(self, sizes: dict[str, float], last: int) -> Explosion | None:
        before, now = (max(each.values(), default=math.nan) for each in (self._sizes, sizes))
        limit = min(max(_GROWTH * before, _LEAST), max(_BEYOND, 10 * before))
        grown = [name for name, size in sizes.items() if size >= limit]
        if not grown or not math.isfinite(before):
            return None
        largest = max(grown, key=lambda name: sizes[name])
        modules = {name.rpartition(".")[0] for name in grown}
        rate, at = self._rate or (None, None)
        where = modules.pop() if len(modules) == 1 else None
        first = min(self.looked + 1, last)
        return Explosion(largest, self._sizes.get(largest, 0.0), now, first, last, rate, at, where)

    def _measured(self) -> dict[str, float]:
        """Return the largest absolute value of each parameter, with one transfer from each device."""
        found = {name: size for name, p in self._model.named_parameters() if (size := _largest(p)) is not None}
        values: dict[str, float] = {}
        for device in {size.device for size in found.values()}:
            names = [name for name, size in found.items() if size.device == device]
            values |= zip(names, torch.stack([found[name] for name in names]).tolist(), strict=True)
        return values


def _largest(tensor: Tensor) -> Tensor | None:
    """Return the largest absolute value as a scalar in float64; None if it cannot be asked of a tensor."""
    if nn.parameter.is_lazy(tensor) or tensor.is_meta or not tensor.is_floating_point():
        return None
    part = local_part(tensor).detach()
    try:
        return torch.linalg.vector_norm(part, math.inf).double() if part.numel() else None
    except Exception:  # dtypes of eight bits, and classes of other libraries without the operation
        return None
