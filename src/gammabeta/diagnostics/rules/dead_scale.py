"""Channels whose γ is zero.

What it does: In trained models, finds norms with channels whose γ is 0, or so small that it is subnormal in its dtype.

Why it matters: Such a channel outputs β for every input. It costs as much as the others, and the weights before it get
no gradient through it. The usual causes are weight decay on γ and pruning that stopped half way.

Example: Two channels of eight with γ = 0.

Use instead: No weight decay on γ (GB401). Channels that stay dead can be pruned.

Evidence: tests/diagnostics/rules/test_dead_scale.py: the example's dead channels give exactly β, and a gradient of 0 to
the weights before.

Limits: Many networks start with γ = 0 in all channels of a norm that ends a residual branch. Such a norm is left out
while all of its γ are 0 and all others in the model are as constructed. γ itself still gets a gradient, and may come
back.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record, channels
from gammabeta.diagnostics.rule import Example, Match

severity = "warning"
sees = "SF"


def check(record: Record) -> Iterator[Match]:
    scales = [(norm, norm.weight.flatten()) for norm in record.norms if _readable(norm.weight)]  # type: ignore[union-attr]
    trained = any(not bool((scale == scale[0]).all()) for _, scale in scales)
    for norm, scale in scales:
        dead = (scale.abs() < torch.finfo(scale.dtype).tiny).nonzero().flatten().tolist()
        if dead and (trained or len(dead) < scale.numel()):
            message = f"γ is 0 in {len(dead)} of {scale.numel()} channels, which only output β: {channels(dead)}"
            evidence = {"dead": len(dead), "channels": scale.numel()}
            fix = Fix("no weight decay on γ; channels that stay dead can be pruned")
            yield Match(norm.name, message, evidence, fix)


def _readable(scale: Tensor | None) -> bool:
    return scale is not None and scale.numel() > 0 and not scale.is_meta and scale.is_floating_point()


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
