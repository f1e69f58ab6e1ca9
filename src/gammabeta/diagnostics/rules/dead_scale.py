"""Channels whose γ is zero.

What it does: Finds norms in which γ of some channels is 0, or below float32's smallest normal number. It asks the layer
what its weight means, by running a copy: in some layers γ is the weight, in others one more than the weight.

Why it matters: Such a channel has the same output for every input. It costs as much as the others, and the weights
before it get no gradient through it. The usual causes are weight decay on γ and pruning that stopped half way.

Example: Two channels of eight with γ = 0.

Use instead: No weight decay on γ (GB401).

Evidence: tests/diagnostics/rules/test_dead_scale.py: the example's dead channels give exactly β, and a gradient of 0 to
the weights before.

Limits: A norm whose γ are all 0 is left out: many networks start so at the end of residual branches, and nothing in a
model says whether that γ has moved. If nothing bypasses such a norm, constant-output says so. γ itself still gets a
gradient, and may come back. A norm that cannot be asked is left out: one that is not called on a tensor alone, or in a
checkpoint one without running statistics. So is one with a mask of torch.nn.utils.prune.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.flow import own_forward
from gammabeta.diagnostics.record import Norm, Record, channels
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.diagnostics.scale import offset_of

severity = "warning"
sees = "SF"

_SMALLEST = torch.finfo(torch.float32).tiny


def check(record: Record) -> Iterator[Match]:
    for norm in record.norms:
        if norm.weight is None or not _readable(norm.weight) or _is_pruned(norm):
            continue
        weight = norm.weight.flatten().float()
        dead_at = {offset: _dead(weight + offset) for offset in (0.0, 1.0)}
        if not any(0 < len(dead) < weight.numel() for dead in dead_at.values()):
            continue
        offset = _offset(norm)
        dead = [] if offset is None else dead_at[offset]
        if not 0 < len(dead) < weight.numel():
            continue
        scale = "1 + weight" if offset else "γ"
        message = f"{scale} is 0 in {len(dead)} of {weight.numel()} channels, {_left(norm)}: {channels(dead)}"
        yield Match(norm.name, message, {"dead": len(dead), "channels": weight.numel()}, Fix(_advice(offset)))


def _dead(scale: Tensor) -> list[int]:
    found: list[int] = (scale.abs() < _SMALLEST).nonzero().flatten().tolist()
    return found


def _offset(norm: Norm) -> float | None:
    """Return what the norm adds to its weight; in a checkpoint only that of norms with running statistics is known."""
    if norm.module is not None:
        return offset_of(norm.module)
    return 0.0 if norm.has_statistics else None


def _left(norm: Norm) -> str:
    """Say what such channels output."""
    module = norm.module
    plain = module is None or not (own_forward(module) or getattr(module, "activation", None))
    if module is None or plain or (norm.bias is None and not module._modules):
        return "which only output 0" if norm.bias is None else "which only output β"
    return "whose output is the same for every input"


def _advice(offset: float | None) -> str:
    if offset:
        return "look at what drives weight to −1 there; weight decay would pull it to 0"
    return "no weight decay on γ: gammabeta.parameter_groups(model, weight_decay)"


def _readable(scale: Tensor) -> bool:
    return scale.numel() > 0 and not scale.is_meta and scale.is_floating_point()


def _is_pruned(norm: Norm) -> bool:
    return norm.module is not None and prune.is_pruned(norm.module)


def flagged() -> Example:
    norm = nn.LayerNorm(8)
    model = nn.Sequential(nn.Linear(4, 8), norm)
    nn.utils.vector_to_parameters(torch.tensor([0.7, 0.0, 1.2, 0.9, 0.0, 1.1, 0.8, 1.0]), [norm.weight])
    return Example(model, where=("1",))


def clean() -> Example:
    norm = nn.LayerNorm(8)
    model = nn.Sequential(nn.Linear(4, 8), norm)
    nn.utils.vector_to_parameters(torch.tensor([0.7, 0.1, 1.2, 0.9, 0.2, 1.1, 0.8, 1.0]), [norm.weight])
    return Example(model)
