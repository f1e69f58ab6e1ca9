"""The oracle: torch's own operations in float64, and autograd through them.

There is one. The norms are aten's, residual and activation are composed after them. A mask has no aten operation: the
values that count are gathered, normalized by aten's operation as if nothing else were there, and put back into zeros,
so that neither a formula of ours nor the value of what is masked out has a part in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gammabeta.proof.call import DIFFERENTIABLE, RUNNING, Call, collect, masked_elements
from gammabeta.proof.operations import ADD_OPS

_ACTIVATIONS: dict[str | None, Callable[[Tensor, float], Tensor]] = {
    None: lambda z, slope: z,
    "relu": lambda z, slope: F.relu(z),
    "relu6": lambda z, slope: F.relu6(z),
    "leaky_relu": F.leaky_relu,
    "silu": lambda z, slope: F.silu(z),
    "hardswish": lambda z, slope: F.hardswish(z),
    "gelu": lambda z, slope: F.gelu(z),
}


def expected(call: Call) -> dict[str, Tensor]:
    """Return outputs, gradients and running statistics after the call, all float64.

    Where a channel's statistics of the batch are not finite (NaN, infinite values, fewer than two of them) its running
    statistics are those before the call.
    """
    tensors: dict[str, Tensor | None] = {}
    for name, tensor in call.tensors.items():
        if tensor is None or name == "mask":
            tensors[name] = tensor
        else:
            wide = _wide(tensor.detach())
            tensors[name] = wide.requires_grad_() if name in DIFFERENTIABLE else wide
    outputs = _add_norm(call, tensors) if call.op in ADD_OPS else (_norm(call, tensors),)
    gradients = tuple(_wide(g) for g in call.gradients)
    wide_call = Call(call.op, tensors, call.settings, gradients)
    results = collect(wide_call, outputs, tensors, unused=True)
    if not call.running and any(call.tensor(name) is not None for name in RUNNING):
        finite = _finite_channels(call)
        for name in RUNNING:
            if (before := call.tensor(name)) is not None:
                results[name] = torch.where(finite, results[name], before.double())
    return results


def _wide(tensor: Tensor) -> Tensor:
    """Copy to float64, contiguous, so that layouts play no role (aten's instance_norm is wrong for some)."""
    return tensor.to(torch.float64, copy=True, memory_format=torch.contiguous_format)


def _add_norm(call: Call, tensors: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
    x, residual = tensors["input"], tensors["residual"]
    assert x is not None
    assert residual is not None
    exact = x + residual
    # The sum is an output in its own right, so the norm is of the sum as it is returned: rounded to its dtype.
    stored = call.input + call.given("residual")
    total = exact + (stored.double() - exact).detach()
    settings = {"normalized_shape": call.setting("normalized_shape"), "eps": _eps(call, stored.dtype)}
    weight = tensors.get("weight")
    if call.op == "add_rms_norm":
        return F.rms_norm(total, weight=weight, **settings), total
    return F.layer_norm(total, weight=weight, bias=tensors.get("bias"), **settings), total


def _norm(call: Call, tensors: dict[str, Tensor | None]) -> Tensor:
    x, residual, mask = tensors["input"], tensors.get("residual"), masked_elements(call)
    assert x is not None

    def finish(y: Tensor, residual: Tensor | None) -> Tensor:
        z = y if residual is None else y + residual
        return _ACTIVATIONS[call.setting("activation")](z, call.setting("activation_slope"))

    if mask is None:
        return finish(_aten(call, x, tensors), residual)

    def gathered(select: Callable[[Tensor], Tensor]) -> Tensor:
        return finish(_aten(call, select(x), tensors), None if residual is None else select(residual))

    if call.op == "batch_norm":
        # Samples and positions in one axis, (n, C): the statistics do not depend on which belong together.
        counts = mask[:, 0].reshape(-1)

        def flat(t: Tensor) -> Tensor:
            return t.movedim(1, -1).reshape(-1, t.shape[1])

        y = torch.zeros_like(flat(x)).index_put((counts,), gathered(lambda t: flat(t)[counts]))
        return y.reshape(x.movedim(1, -1).shape).movedim(-1, 1)
    if call.op in ("group_norm", "instance_norm"):
        parts = []
        for i in range(x.shape[0]):
            counts = mask[i, 0]

            def select(t: Tensor, i: int = i, counts: Tensor = counts) -> Tensor:
                return t[i : i + 1, :, counts]

            # For an empty input aten's gradients are NaN.
            y = gathered(select) if counts.any() else select(x)
            index = (torch.arange(x.shape[1])[:, None], *torch.where(counts))
            parts.append(torch.zeros_like(x[i]).index_put(index, y[0]))
        _move_instance_statistics(call, tensors)
        return torch.stack(parts)
    normalized = len(call.setting("normalized_shape"))
    samples = mask.flatten(mask.ndim - normalized)[..., 0]
    return torch.zeros_like(x).index_put((samples,), gathered(lambda t: t[samples]))


def _aten(call: Call, x: Tensor, tensors: dict[str, Tensor | None]) -> Tensor:
    weight, bias = tensors.get("weight"), tensors.get("bias")
    mean, var = tensors.get("running_mean"), tensors.get("running_var")
    eps: float = _eps(call, call.input.dtype)
    momentum: float = call.setting("momentum")
    # Not torch's functions in front of these: they refuse one value per channel, and under a mask there may be one.
    match call.op:
        case "batch_norm":
            return torch.batch_norm(x, weight, bias, mean, var, call.setting("training"), momentum, eps, False)
        case "instance_norm":
            own = call.setting("use_input_stats")
            if x.numel() == 0:  # which aten's instance_norm does not take
                return torch.group_norm(x, x.shape[1], weight, bias, eps)
            if own and call.tensor("mask") is not None:
                mean = var = None
            return torch.instance_norm(x, weight, bias, mean, var, own, momentum, eps, False)
        case "group_norm":
            if weight is None and bias is not None:  # which aten's backward does not take
                return torch.group_norm(x, call.setting("num_groups"), torch.ones_like(bias), bias, eps)
            return torch.group_norm(x, call.setting("num_groups"), weight, bias, eps)
        case "layer_norm":
            return F.layer_norm(x, call.setting("normalized_shape"), weight, bias, eps)
        case "rms_norm":
            return F.rms_norm(x, call.setting("normalized_shape"), weight, eps)
    raise AssertionError(call.op)


def _eps(call: Call, dtype: torch.dtype) -> Any:
    """ε; rms_norm's default is the spacing at 1 of the dtype that the arithmetic is in, which here is not float64."""
    eps = call.setting("eps")
    if eps is None:
        eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return eps


def _instances(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (divided by n − 1) of every sample's channel by the values that count, and which have any."""
    x = call.input.detach().double().flatten(2)
    mask = call.tensor("mask")
    counts = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool)
    if mask is not None:
        counts = torch.broadcast_to(mask, (call.input.shape[0], *call.input.shape[2:])).flatten(1)
    means, variances = [], []
    for i in range(x.shape[0]):
        values = x[i][:, counts[i]]
        means.append(values.mean(1))
        variances.append((values - means[-1][:, None]).square().sum(1) / (values.shape[1] - 1))
    empty = x.new_zeros(0, x.shape[1])
    has = counts.sum(1) > 1
    return torch.stack(means) if means else empty, torch.stack(variances) if variances else empty, has


def _move_instance_statistics(call: Call, tensors: dict[str, Tensor | None]) -> None:
    """instance_norm's running statistics under a mask: towards the averages over the samples that have statistics."""
    if call.op != "instance_norm" or call.running:
        return
    mean, var, has = _instances(call)
    momentum = call.setting("momentum")
    for name, batch in (("running_mean", mean), ("running_var", var)):
        if (running := tensors.get(name)) is not None:
            running.copy_((1 - momentum) * running + momentum * batch[has].mean(0))


def _finite_channels(call: Call) -> Tensor:
    """Of the channels, which have finite statistics in this batch."""
    x = call.input.detach().double()
    if call.op == "instance_norm":
        mean, var, has = _instances(call)
        return (mean[has].mean(0) + var[has].mean(0)).isfinite()
    values = x.movedim(1, -1).reshape(-1, x.shape[1])
    mask = masked_elements(call)
    if mask is not None:
        values = values[mask[:, 0].reshape(-1)]
    if values.shape[0] < 2:
        return torch.zeros(x.shape[1], dtype=torch.bool)
    return (values.mean(0) + values.var(0, correction=1)).isfinite()
