"""Random calls: random values in every tensor, so that nothing that is ignored goes unnoticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gammabeta.proof.call import KINKS, Call, result_dtypes
from gammabeta.proof.magnitudes import magnitudes
from gammabeta.proof.operations import ADD_OPS, CHANNEL_OPS
from gammabeta.proof.oracle import expected


def random_call(
    op: str,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    normalized: int = 1,
    groups: int | None = None,
    weight: bool = True,
    bias: bool = True,
    running: bool = True,
    residual: bool = False,
    mask: Tensor | None = None,
    mean: float = 0.5,
    std: float = 1.5,
    scale: float = 1.0,
    dtypes: Mapping[str, torch.dtype] | None = None,
    layout: Callable[[Tensor], Tensor] = lambda t: t,
    seed: int = 0,
    **settings: Any,
) -> Call:
    """A call with random values everywhere: no weight is 1, no bias 0, no running statistic untouched.

    Args:
        normalized: the number of normalized axes of the sample norms.
        groups: of group_norm; the largest of 3, 2, 1 that divides where None.
        scale: of the weight, which is ±scale·(0.5 to 1.5).
        mean, std: x is mean·(1 ± a tenth by channel) + std·(0.5 to 1.5 by channel)·N(0, 1).
        dtypes: of single tensors, by name, where they are not `dtype`.
        layout: what brings a dense tensor of x's shape into another layout.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(shape)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    def cast(name: str, values: Tensor) -> Tensor:
        return values.to((dtypes or {}).get(name, dtype))

    channel_op = op in CHANNEL_OPS
    parameters = (shape[1],) if channel_op else shape[len(shape) - normalized :]
    varied = (1, shape[1], *(1,) * (len(shape) - 2)) if channel_op else shape[len(shape) - normalized :]
    x = mean * (1 + 0.1 * normal(*varied)) + std * (0.5 + uniform(*varied)) * normal(*shape)
    tensors: dict[str, Tensor | None] = {"input": layout(cast("input", x))}
    if weight:
        sign = torch.where(uniform(*parameters) < 0.25, -1.0, 1.0)
        tensors["weight"] = cast("weight", scale * sign * (0.5 + uniform(*parameters)))
    if bias and "rms" not in op:
        tensors["bias"] = cast("bias", normal(*parameters))
    if op in ("batch_norm", "instance_norm"):
        tensors["running_mean"] = cast("running_mean", normal(shape[1])) if running else None
        tensors["running_var"] = cast("running_var", 0.5 + uniform(shape[1])) if running else None
    if op == "group_norm":
        settings["num_groups"] = groups or next(g for g in (3, 2, 1) if shape[1] % g == 0)
    elif not channel_op:
        settings["normalized_shape"] = parameters
    if residual or op in ADD_OPS:
        tensors["residual"] = layout(cast("residual", normal(*shape)))
    if mask is not None:
        tensors["mask"] = mask
    call = Call(op, tensors, settings)
    output = result_dtypes(call)["output"]
    count = 2 if op in ADD_OPS else 1
    gradients = tuple(layout(normal(*shape).to(output)) for _ in range(count))
    return away_from_kinks(replace(call, gradients=gradients))


def away_from_kinks(call: Call) -> Call:
    """The call with a gradient that is zero where the activation's input is within rounding of a kink.

    There one side's derivative is as right as the other's, and rounding decides which one an implementation takes.
    """
    kinks = KINKS.get(call.setting("activation") or "")
    if not kinks:
        return call
    linear = call.with_settings(activation=None)
    z, size = expected(linear)["output"], magnitudes(linear)["output"]
    arithmetic = torch.float64 if call.input.dtype == torch.float64 else torch.float32
    rounding = 16 * torch.finfo(arithmetic).eps * size.arithmetic + 4 * torch.finfo(call.input.dtype).eps * size.inside
    near = torch.zeros_like(z, dtype=torch.bool)
    for kink in kinks:
        near |= (z - kink).abs() < rounding
    gradient = call.gradients[0].masked_fill(near & (call.tensor("mask") is None or z != 0), 0.0)
    assert gradient.numel() == 0 or (gradient != 0).double().mean() > 0.4, "the test would check no gradient"
    return replace(call, gradients=(gradient,))
