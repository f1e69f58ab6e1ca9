"""Tensors that are not plain ones, and who computes a norm of them: decided here, once.

A DTensor (dtensor.py) and a NestedTensor (nested.py) are plain tensors and a description of how they lie in the whole.
The norm is taken of the plain tensors, by the same function, and the results are put together again. So whatever a norm
does, an activation, a residual, a mask, 16-bit arithmetic, it does there too, and at any size.

Any other class with a `__torch_dispatch__` of its own knows torch's ops and need not know ours: it is left to torch's.
Classes without one are plain tensors to every op.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import has_torch_function_unary, has_torch_function_variadic

from gammabeta.reference import Affine
from gammabeta.subclasses import nested
from gammabeta.subclasses.operands import Operands


def in_parts(x: Tensor, weight: Tensor | None = None) -> bool:
    """Whether x or weight is a DTensor, or x a NestedTensor. This is asked in each call: it costs 0.1 µs."""
    kind = type(x)
    if (kind is Tensor or kind is Parameter) and not x.is_nested:
        of_weight = type(weight)
        if weight is None or of_weight is Parameter or of_weight is Tensor:
            return False
    return isinstance(x, Tensor) and (x.is_nested or _is_dtensor(x) or _is_dtensor(weight))


def _is_dtensor(tensor: Tensor | None) -> bool:
    # Whoever has one has imported its module, which a build without torch.distributed can't.
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def knows_only_torch(x: Tensor) -> bool:
    """Whether x is of a class that may know torch's ops and not ours.

    Those of torch's that compilers trace with pass any op on, as the result of a collective does that is under way.
    """
    kind = type(x)
    if kind is Tensor or kind is Parameter or not isinstance(x, Tensor):
        return False
    if kind.__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl:
        return False
    return not _is_transparent(kind)


def overrides_torch(*tensors: Tensor | None) -> bool:
    """Whether one is of a class that handles torch.nn.functional itself, by `__torch_function__`.

    Not those that are `in_parts`, nor those of torch's that pass any op on.
    """
    return has_torch_function_variadic(*tensors) and any(
        # By the class alone: such a class may handle the reading of attributes too.
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
    """A norm whose statistics are each sample's own, of a tensor that is `in_parts`.

    Args:
        norm: the norm of plain tensors: `functional`'s.
        axes: how many of x's last axes it normalizes; None: axis 0 are the samples, axis 1 the channels.
        settings: what norm takes by name: normalized_shape, num_groups, eps.
        affine: γ and β.
        finish: `functional.Finish`.
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
    """Make of a channel norm, which takes a `functional.NormCall`, one for tensors that are `in_parts`."""

    def of_parts(call: Any) -> Tensor:
        finish = call.finish

        def compute(x: Tensor, running: Any, weight: Any, bias: Any, residual: Any, mask: Any) -> Tensor:
            of_part = type(finish)(finish.norm, residual, finish.activation, finish.slope, mask)
            return normalize(type(call)(x, running, (weight, bias), call.eps, of_part))

        from gammabeta.subclasses import dtensor

        operands = Operands(*call.affine, finish.residual, finish.mask)
        return dtensor.by_channels(finish.norm, compute, call.x, call.running, operands)

    return of_parts


def update(running: Any, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """`RunningStatistics.update`, of buffers that may be DTensors."""
    if not (_is_dtensor(running.mean) or _is_dtensor(running.var)):
        running.update(mean, var, count)
        return
    from gammabeta.subclasses import dtensor

    dtensor.update(running, mean, var, count)
