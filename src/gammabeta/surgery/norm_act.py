"""BatchNorms that hold their activation in the children `drop` and `act`, such as timm's BatchNormAct2d."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from gammabeta.activations import TABLE
from gammabeta.layers.batch_norm import BatchNorm2d

# The classes of `act` by name, "Swish" being timm's SiLU. What they compute is compared before adoption.
_ACTIVATIONS = {
    class_name: None if row.name == "none" else row.name
    for row in TABLE.values()
    for class_name in (*(module.__name__ for module in row.modules), *row.other_modules)
}
_TOLERANCE = 1e-4  # relative, in float32: kernels differ by a few units in the last place, activations by far more


def activation_of(module: nn.Module) -> tuple[str | None, float]:
    """Return the activation's name and slope, for a module that `why_not_act` accepts."""
    act = module._modules["act"]
    return _ACTIVATIONS[type(act).__name__], float(getattr(act, "negative_slope", 0.01))


def why_not_act(module: nn.Module) -> str | None:
    """Return why the module's children do not compute an activation of ours; None where they do."""
    name = type(module).__name__
    if {*module._modules} != {"drop", "act"}:
        return f"{name} has a forward of its own, with the children {', '.join(module._modules)}"
    drop, act = module.get_submodule("drop"), module.get_submodule("act")
    if type(drop) is not nn.Identity or type(act).__name__ not in _ACTIVATIONS:
        inside = type(act if type(drop) is nn.Identity else drop).__name__
        return f"{name} has a forward of its own, with a {inside} that no layer of ours has"
    if any(child._forward_hooks or child._forward_pre_hooks or child._backward_hooks for child in (drop, act)):
        return f"{name} has hooks on its act or drop, which would not be called"
    return None


def why_not_norm_act(module: nn.BatchNorm2d) -> str | None:
    """Return why the module differs from our BatchNorm2d with an activation; compare copies in both modes."""
    name, reason = type(module).__name__, why_not_act(module)
    if reason is not None:
        return reason
    weight = module.running_mean if module.weight is None else module.weight
    if weight is None or weight.is_meta:
        return f"{name} has a forward of its own, and no values to compare it by"
    return None if _same(module) else f"{name} has a forward of its own, which computes something else than ours"


@torch.no_grad()
def _same(module: nn.BatchNorm2d) -> bool:
    activation, slope = activation_of(module)
    ours = BatchNorm2d(
        module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats,
        activation=activation, activation_slope=slope, bias=module.bias is not None,
    )  # fmt: skip
    # A copy without hooks, which belong to the user's runs and not to this one.
    theirs = type(module).__new__(type(module))
    nn.Module.__init__(theirs)
    theirs.__dict__.update({k: v for k, v in module.__dict__.items() if not k.startswith("_")})
    theirs._modules.update(module._modules)
    generator = torch.Generator().manual_seed(0)
    for key in (*module._parameters, *module._buffers):
        own = getattr(ours, key)
        if own is None:
            setattr(theirs, key, None)
            continue
        if key == "running_var":
            own.uniform_(0.5, 2, generator=generator)
        elif own.is_floating_point():
            own.normal_(generator=generator)
        copied = own.clone()
        if key in module._parameters:
            theirs.register_parameter(key, nn.Parameter(copied))
        else:
            theirs.register_buffer(key, copied)
    x = torch.randn(4, module.num_features, 3, 3, generator=generator) * 3
    # In training a SyncBatchNorm would wait for other processes, which compare nothing.
    alone = not isinstance(module, nn.SyncBatchNorm) or not (dist.is_available() and dist.is_initialized())
    for training in (True, False) if alone else (False,):
        ours.training = theirs.training = training
        if not torch.allclose(type(module).forward(theirs, x.clone()), ours(x), rtol=_TOLERANCE, atol=_TOLERANCE):
            return False
    state = ours.state_dict()
    return all(torch.allclose(b, state[k], rtol=_TOLERANCE, atol=_TOLERANCE) for k, b in theirs.named_buffers())
