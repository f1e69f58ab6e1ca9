"""The operations that a kernel implements: their schemas, default implementations and fakes.

torch's dispatcher is the only registry of kernels. Every op is declared here once, with the reference as its default
implementation. A native kernel registers itself for its device under the same schema, and no caller changes. The ops
are private and functional (they alias and mutate nothing). They take any mix of dtypes and check every argument
(`op_checks.py`).

    channel_norm_forward, channel_norm_backward      statistics over batch and positions, taken from x
    channel_apply_forward                            the same with given statistics, as constants
    channel_moments, channel_backward_reduce,        the halves of both: between them, statistics and sums of several
    channel_backward_apply                           processes can be merged
    sample_norm_forward, sample_norm_backward        statistics over channels and positions of a sample
    add_sample_norm_forward, -_backward              the same of x + residual, which is returned too

`autograd.py` makes differentiable functions of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gammabeta import reference
from gammabeta._torch_private import constant_in_graphs, has_dispatch_kernel
from gammabeta.moments import statistics_dtype
from gammabeta.op_checks import OpCheck

_library = torch.library.Library("gammabeta", "DEF")

DEFAULTS: dict[str, Callable[..., Any]] = {}
"""The default implementations by name, which run where no kernel does."""

CHECKS: dict[str, OpCheck] = {}
"""The checks of their arguments by name. Every implementation of an op is wrapped in its check."""


def _declare(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema[: schema.index("(")]
    CHECKS[name] = check = OpCheck(schema)
    DEFAULTS[name] = check.checked(implementation, memory=True)
    # Any layout will do: a compiler that keeps convolutions in channels_last need not copy for us.
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))
    _library.impl(name, DEFAULTS[name], "CompositeExplicitAutograd")
    # A fake also runs for real tensors, wherever one of them is on the meta device.
    torch.library.register_fake(f"gammabeta::{name}", check.checked(fake), lib=_library)


serves: dict[str, Callable[[], bool]] = {}
"""By device type: whether the registered kernels serve the devices of this machine, where that has to be asked."""

_has_kernel: dict[str, bool] = {}


@constant_in_graphs
def has_kernel(device_type: str) -> bool:
    """Return whether our kernels serve that device type. Meta tensors have only fakes."""
    if device_type not in _has_kernel:
        key, name = device_type.upper(), "gammabeta::channel_norm_forward"
        has = device_type != "meta" and has_dispatch_kernel(name, key)
        has = has and serves.get(device_type, lambda: True)()
        _has_kernel[device_type] = has
    return _has_kernel[device_type]


# An absent gradient is a tensor without elements: no schema that compiles can return None in a tuple.


def _or_empty(
    gradients: reference.Gradients, x: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g_x, g_weight, g_bias, g_residual = (x.new_empty(0) if g is None else g for g in gradients)
    return _laid_as(x, g_x), g_weight, g_bias, g_residual if residual is None else _laid_as(residual, g_residual)


def _laid_as(like: Tensor, result: Tensor) -> Tensor:
    """Return the result with the strides that fakes and kernels give it: those of torch.empty_like."""
    laid = torch.empty_like(like, dtype=result.dtype)
    return result if result.stride() == laid.stride() else laid.copy_(result)


def _empty_gradients(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g_x, g_residual = (x.new_empty(0) if t is None else torch.empty_like(t) for t in (x, residual))
    g_weight, g_bias = (x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (weight, bias))
    return g_x, g_weight, g_bias, g_residual


def _new_statistics(x: Tensor, shape: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    dtype = statistics_dtype(x.dtype)
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=torch.int64)


# Channel norms.


def _channel_norm_forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, mean, var, count = reference.channel_norm_forward(x, *rest)
    return _laid_as(x, y), mean, var, count


def _channel_norm_forward_fake(
    x: Tensor, weight: Any, bias: Any, residual: Tensor | None, mask: Any, eps: float, activation: str, slope: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = torch.empty_like(x, dtype=reference.output_dtype(x, residual))
    return y, *_new_statistics(x, (x.shape[1],))


_declare(
    "channel_norm_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, float eps, "
    "str activation, float slope) -> (Tensor y, Tensor mean, Tensor var, Tensor count)",
    _channel_norm_forward,
    _channel_norm_forward_fake,
)


def _channel_apply_forward_fake(
    x: Tensor, mean: Any, var: Any, weight: Any, bias: Any, residual: Tensor | None, *_: Any
) -> Tensor:
    return torch.empty_like(x, dtype=reference.output_dtype(x, residual))


_declare(
    "channel_apply_forward(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? residual, "
    "Tensor? mask, float eps, str activation, float slope) -> Tensor",
    lambda x, *rest: _laid_as(x, reference.channel_apply_forward(x, *rest)),
    _channel_apply_forward_fake,
)


def _channel_norm_backward(
    g_y: Tensor, x: Tensor, weight: Any, bias: Any, residual: Any, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _or_empty(reference.channel_norm_backward(g_y, x, weight, bias, residual, *rest), x, residual)


def _channel_norm_backward_fake(
    g_y: Tensor, x: Tensor, weight: Any, bias: Any, residual: Any, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_gradients(x, weight, bias, residual)


# Without `count` the statistics are constants. `residual` is given where the activation's derivative needs it.
_declare(
    "channel_norm_backward(Tensor g_y, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, "
    "Tensor mean, Tensor var, Tensor? count, float eps, str activation, float slope) "
    "-> (Tensor g_x, Tensor g_weight, Tensor g_bias, Tensor g_residual)",
    _channel_norm_backward,
    _channel_norm_backward_fake,
)


# The halves of a channel norm. Forward: moments, then apply. Backward: reduce, then apply.


def channel_moments(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean, m2 and count of every channel."""
    moments = reference.channel_moments(x, mask)
    return moments.mean, moments.m2, moments.count.clone()


_declare(
    "channel_moments(Tensor x, Tensor? mask) -> (Tensor mean, Tensor m2, Tensor count)",
    channel_moments,
    lambda x, mask: _new_statistics(x, (x.shape[1],)),
)


def _channel_backward_reduce_fake(g_y: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    mean, var, _count = _new_statistics(x, (x.shape[1],))
    return mean, var


# Σ∂ℓ/∂z and Σx̂·∂ℓ/∂z of every channel, which are the gradients of bias and weight.
_declare(
    "channel_backward_reduce(Tensor g_y, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, "
    "Tensor mean, Tensor var, float eps, str activation, float slope) -> (Tensor sum_g, Tensor sum_g_xhat)",
    reference.channel_backward_reduce,
    _channel_backward_reduce_fake,
)


def _channel_backward_apply(
    g_y: Tensor, x: Tensor, weight: Any, bias: Any, residual: Any, *rest: Any
) -> tuple[Tensor, Tensor]:
    g_x, g_residual = reference.channel_backward_apply(g_y, x, weight, bias, residual, *rest)
    if residual is None or g_residual is None:
        return _laid_as(x, g_x), x.new_empty(0)
    return _laid_as(x, g_x), _laid_as(residual, g_residual)


def _channel_backward_apply_fake(
    g_y: Tensor, x: Tensor, weight: Any, bias: Any, residual: Any, *_: Any
) -> tuple[Tensor, Tensor]:
    g_x, _g_weight, _g_bias, g_residual = _empty_gradients(x, weight, bias, residual)
    return g_x, g_residual


_declare(
    "channel_backward_apply(Tensor g_y, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, "
    "Tensor mean, Tensor var, Tensor sum_g, Tensor sum_g_xhat, Tensor count, float eps, str activation, float slope) "
    "-> (Tensor g_x, Tensor g_residual)",
    _channel_backward_apply,
    _channel_backward_apply_fake,
)


# Sample norms.


def _sample_norm_forward_fake(
    x: Tensor,
    sample_axes: int,
    channel_axes: int,
    groups: int,
    weight: Any,
    bias: Any,
    residual: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = torch.empty_like(x, dtype=reference.output_dtype(x, residual))
    return y, *_new_statistics(x, _statistics_shape(x, sample_axes, groups))


def _sample_norm_forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, mean, var, count = reference.sample_norm_forward(x, *rest)
    return _laid_as(x, y), mean, var, count


def _statistics_shape(x: Tensor, sample_axes: int, groups: int) -> tuple[Any, ...]:
    samples: Any = 1
    for axis in range(sample_axes):
        samples = samples * x.shape[axis]
    return samples, groups


_declare(
    "sample_norm_forward(Tensor x, int sample_axes, int channel_axes, int groups, Tensor? weight, Tensor? bias, "
    "Tensor? residual, Tensor? mask, float eps, str activation, float slope, bool center) "
    "-> (Tensor y, Tensor mean, Tensor var, Tensor count)",
    _sample_norm_forward,
    _sample_norm_forward_fake,
)


def _sample_norm_backward(
    g_y: Tensor, x: Tensor, sample_axes: int, channel_axes: int, groups: int, weight: Any, bias: Any, residual: Any,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    gradients = reference.sample_norm_backward(
        g_y, x, sample_axes, channel_axes, groups, weight, bias, residual, *rest
    )  # fmt: skip
    return _or_empty(gradients, x, residual)


def _sample_norm_backward_fake(
    g_y: Tensor,
    x: Tensor,
    sample_axes: int,
    channel_axes: int,
    groups: int,
    weight: Any,
    bias: Any,
    residual: Any,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_gradients(x, weight, bias, residual)


_declare(
    "sample_norm_backward(Tensor g_y, Tensor x, int sample_axes, int channel_axes, int groups, Tensor? weight, "
    "Tensor? bias, Tensor? residual, Tensor? mask, Tensor mean, Tensor var, Tensor count, float eps, str activation, "
    "float slope, bool center) -> (Tensor g_x, Tensor g_weight, Tensor g_bias, Tensor g_residual)",
    _sample_norm_backward,
    _sample_norm_backward_fake,
)


# Sum and sample norm in one op, for pre-norm Transformers: LayerNorm and RMSNorm of x + residual.


def add_sample_norm_forward(
    x: Tensor, residual: Tensor, channel_axes: int, weight: Any, bias: Any, eps: float, center: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute y of the sum, the sum, and its statistics."""
    total = x + residual
    y, mean, var, count = reference.sample_norm_forward(
        total, x.ndim - channel_axes, channel_axes, 1, weight, bias, None, None, eps, "none", 0.0, center
    )
    return y, total, mean, var, count


def _add_sample_norm_forward_fake(
    x: Tensor, residual: Tensor, channel_axes: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    total = torch.empty_like(x, dtype=torch.promote_types(x.dtype, residual.dtype))
    statistics = _new_statistics(total, _statistics_shape(x, x.ndim - channel_axes, 1))
    return torch.empty_like(total), total, *statistics


_declare(
    "add_sample_norm_forward(Tensor x, Tensor residual, int channel_axes, Tensor? weight, Tensor? bias, float eps, "
    "bool center) -> (Tensor y, Tensor total, Tensor mean, Tensor var, Tensor count)",
    add_sample_norm_forward,
    _add_sample_norm_forward_fake,
)


def _add_sample_norm_backward(
    g_y: Tensor, g_total: Tensor, total: Tensor, channel_axes: int, weight: Any, bias: Any, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    mean, var, count, eps, center = rest
    g_x, g_weight, g_bias, _ = _or_empty(
        reference.sample_norm_backward(
            g_y, total, total.ndim - channel_axes, channel_axes, 1, weight, bias, None, None, mean, var, count, eps,
            "none", 0.0, center,
        ),
        total,
        None,
    )  # fmt: skip
    return _laid_as(total, (g_x + g_total).to(total.dtype)), g_weight, g_bias


def _add_sample_norm_backward_fake(
    g_y: Tensor, g_total: Tensor, total: Tensor, channel_axes: int, weight: Any, bias: Any, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(total, weight, bias, None)[:3]


_declare(
    "add_sample_norm_backward(Tensor g_y, Tensor g_total, Tensor total, int channel_axes, Tensor? "
    "weight, Tensor? bias, "
    "Tensor mean, Tensor var, Tensor count, float eps, bool center) -> (Tensor g_total, Tensor g_weight, "
    "Tensor g_bias)",
    _add_sample_norm_backward,
    _add_sample_norm_backward_fake,
)
