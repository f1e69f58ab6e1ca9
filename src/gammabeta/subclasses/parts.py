"""The decision who computes a norm of a tensor that is not a plain one.

A DTensor (dtensor.py) and a NestedTensor (nested.py) are plain tensors with a description of how they lie in the whole.
The same function normalizes the plain tensors, and the results are put together again. So whatever a norm does (an
activation, a residual, a mask, 16-bit arithmetic, any size) it does there too.

Any other class with a `__torch_dispatch__` of its own handles torch's ops but may not handle ours, so torch's ops
compute its norms. Classes without one are plain tensors to every op.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.overrides import has_torch_function_unary, has_torch_function_variadic

from gammabeta._torch_private import no_torch_dispatch
from gammabeta.reference import Affine
from gammabeta.subclasses import nested
from gammabeta.subclasses.operands import Operands


def in_parts(x: Tensor, weight: Tensor | None = None) -> bool:
    """Return whether x or weight is a DTensor, or x a NestedTensor. Each call asks it, at a cost of 0.1 µs."""
    kind = type(x)
    if (kind is Tensor or kind is Parameter) and not x.is_nested:
        of_weight = type(weight)
        if weight is None or of_weight is Parameter or of_weight is Tensor:
            return False
    return isinstance(x, Tensor) and (x.is_nested or _is_dtensor(x) or _is_dtensor(weight))


def _is_dtensor(tensor: Tensor | None) -> bool:
    # A DTensor exists only where its module is imported, which a build without torch.distributed cannot do.
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def knows_only_torch(x: Tensor) -> bool:
    """Return whether x is of a class that may handle torch's ops and not ours.

    torch's own classes for tracing pass any op on, and so does the result of a collective that is under way.
    """
    kind = type(x)
    if kind is Tensor or kind is Parameter or not isinstance(x, Tensor):
        return False
    if kind.__torch_dispatch__ is no_torch_dispatch:
        return False
    return not _is_transparent(kind)


def overrides_torch(*tensors: Tensor | None) -> bool:
    """Return whether one is of a class that handles torch.nn.functional itself, by `__torch_function__`.

    Classes that are `in_parts`, and those of torch that pass any op on, do not count.
    """
    return has_torch_function_variadic(*tensors) and any(
        # Only by the class: such a class may handle the reading of attributes too.
        has_torch_function_unary(t)
        and not _is_transparent(type(t))
        and not type(t).__module__.startswith("torch.nested")
        for t in tensors
        if t is not None
    )


def _is_transparent(kind: type) -> bool:
    return kind.__module__.startswith("torch.") and kind.__name__ in _TRANSPARENT


_TRANSPARENT = ("FakeTensor", "FunctionalTensor", "AsyncCollectiveTensor")


def by_parts(
    norm: Callable[..., Tensor],
    axes: int | None,
    x: Tensor,
    settings: dict[str, Any],
    affine: Affine,
    finish: Any,
) -> Tensor:
    """Compute a norm with statistics of each sample, of a tensor that is `in_parts`.

    Args:
        norm: the function of `functional` for plain tensors.
        axes: how many of x's last axes it normalizes; None where axis 0 is the samples and axis 1 the channels.
        settings: arguments of norm by name: normalized_shape, num_groups, eps.
        affine: γ and β.
        finish: `aten.Finish`.
    """

    def compute(x: Tensor, weight: Any, bias: Any, residual: Any, mask: Any) -> Tensor:
        vectors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return norm(
            x, **settings, **vectors, residual=residual, activation=finish.activation,
            activation_slope=finish.slope, mask=mask,
        )  # fmt: skip

    operands = Operands(*affine, finish.residual, finish.mask)
    if x.is_nested:
        return nested.by_rows(finish.norm, compute, axes, x, operands)
    from gammabeta.subclasses import dtensor

    return dtensor.by_samples(finish.norm, compute, axes, x, operands)


def by_channels(normalize: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """Turn a channel norm, which takes a `functional.NormCall`, into one for tensors that are `in_parts`."""

    def of_parts(call: Any) -> Tensor:
        finish = call.finish

        def compute(x: Tensor, running: Any, weight: Any, bias: Any, residual: Any, mask: Any) -> Tensor:
            of_part = replace(finish, residual=residual, mask=mask)
            return normalize(replace(call, x=x, running=running, affine=(weight, bias), finish=of_part))

        from gammabeta.subclasses import dtensor

        weight, bias = call.affine
        operands = Operands(weight, bias, finish.residual, finish.mask)
        return dtensor.by_channels(finish.norm, compute, call.x, call.running, operands)

    return of_parts


def update(running: Any, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Do what `RunningStatistics.update` does, for buffers that may be DTensors."""
    if not (_is_dtensor(running.mean) or _is_dtensor(running.var)):
        running.update(mean, var, count)
        return
    from gammabeta.subclasses import dtensor

    dtensor.update(running, mean, var, count)
