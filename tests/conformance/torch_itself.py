"""torch's own result of a call: what gammabeta hands on where torch's op runs.

In 16 bits torch's ops for the CPU round inside to x's dtype (group and layer norm in their backward, batch norm in
evaluation), so that no count of roundings bounds them for a large mean. Where such a result is outside its row of the table
it has to be torch's, bit by bit: then the rounding is torch's and nothing of ours was added.
"""

from __future__ import annotations

import torch
from tests.conformance.call import ADD_OPS, DIFFERENTIABLE, Call, collect
from torch import Tensor
from torch.nn import functional

COMPOSED = {
    None: lambda z, slope: z,
    "relu": lambda z, slope: functional.relu(z),
    "relu6": lambda z, slope: functional.relu6(z),
    "leaky_relu": functional.leaky_relu,
    "silu": lambda z, slope: functional.silu(z),
    "hardswish": lambda z, slope: functional.hardswish(z),
    "gelu": lambda z, slope: functional.gelu(z),
}


def by_torch(call: Call, differentiated: tuple[str, ...] = DIFFERENTIABLE) -> dict[str, Tensor]:
    """The outputs and gradients of torch's op, the sum and the activation composed around it. Without a mask."""
    assert call.tensor("mask") is None
    tensors = {
        name: None if tensor is None else tensor.detach().requires_grad_(name in differentiated)
        for name, tensor in call.tensors.items()
        if name not in ("running_mean", "running_var") or call.running
    }
    x, weight, bias = tensors["input"], tensors.get("weight"), tensors.get("bias")
    residual, shape, eps = tensors.get("residual"), call.setting("normalized_shape"), call.setting("eps")
    if "rms" in call.op and eps is None:
        eps = torch.finfo(torch.float32).eps
    total = x + residual if call.op in ADD_OPS else x
    if call.op == "batch_norm" or call.running:
        running = (tensors.get("running_mean"), tensors.get("running_var"))
        y = functional.batch_norm(total, *running, weight, bias, not call.running, 0.0, eps)
    elif call.op == "rms_norm" or call.op == "add_rms_norm":
        y = functional.rms_norm(total, shape, weight, eps)
    elif call.op in ("layer_norm", "add_layer_norm"):
        y = functional.layer_norm(total, shape, weight, bias, eps)
    else:
        groups = x.shape[1] if call.op == "instance_norm" else call.setting("num_groups")
        y = functional.group_norm(total, groups, weight, bias, eps)
    if call.op in ADD_OPS:
        return collect(call, (y, total), tensors)
    y = y if residual is None else y + residual
    return collect(call, (COMPOSED[call.setting("activation")](y, call.setting("activation_slope")),), tensors)
