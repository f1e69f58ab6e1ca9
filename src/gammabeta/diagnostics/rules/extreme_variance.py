"""Channels whose variance is so small or so large that something else decides the output.

What it does: Finds channels whose running variance is under ε, and channels whose running mean or variance is beyond
float16's largest number, 65,504.

Why it matters: With σ² under ε the layer divides by √ε and not by σ: the channel is not standardized, its output is
small, and a change of ε, which a conversion to another framework may bring, changes the model. Most such channels are
dead: nothing arrives. A variance beyond 65,504 is infinite once the buffers are cast to float16, and the channel's
output zero.

Example: A channel whose values differ by 10⁻⁴.

Use instead: Keep ε as it was in training, and norms in float32 (gammabeta's stay so in a model cast by `.half()`);
prune channels that are dead.

Evidence: tests/diagnostics/rules/test_extreme_variance.py: at σ² = ε/100 the output's variance is 0.0099 in place of 1,
and a variance of 10⁵ cast to float16 makes the output 0 where it was of variance 1.

Limits: Trained networks have dead channels, by weight decay and by ReLU, and no harm in them.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record, channels
from gammabeta.diagnostics.rule import Example, Match

severity = "warning"
sees = "SF"

_LARGEST = torch.finfo(torch.float16).max
_EPS = 1e-5  # torch's, where a checkpoint does not say


def check(record: Record) -> Iterator[Match]:
    for norm in record.norms:
        if not norm.has_statistics:
            continue
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, var = norm.running_mean.float().flatten(), norm.running_var.float().flatten()
        eps = _EPS if norm.eps is None else norm.eps
        # Negative and infinite ones are poisoned, which is another rule's.
        small = ((var >= 0) & (var < eps)).nonzero().flatten().tolist()
        large = (((var > _LARGEST) & var.isfinite()) | ((mean.abs() > _LARGEST) & mean.isfinite())).nonzero().flatten()
        said: list[str] = []
        evidence: dict[str, float] = {}
        if small:
            least = var[small].min().item()
            said.append(
                f"variance under ε ({eps:g}) in {len(small)} of {var.numel()} channels, down to {least:.2g}: "
                f"{channels(small)}; ε decides their output"
            )
            evidence |= {"under eps": len(small), "least variance": least}
        if len(large):
            most = torch.maximum(var, mean.abs())[large].max().item()
            said.append(
                f"statistics beyond float16's 65504 in {len(large)} of {var.numel()} channels, up to {most:.3g}: "
                f"{channels(large.tolist())}"
            )
            evidence |= {"beyond float16": len(large), "largest": most}
        if said:
            advice = "keep ε and the norms' float32; channels that are dead can be pruned"
            yield Match(norm.name, "; ".join(said), evidence, Fix(advice))


def flagged() -> Example:
    norm = nn.BatchNorm1d(4, momentum=None)
    norm(torch.randn(64, 4) * torch.tensor([1.0, 1e-4, 1.0, 1.0]))
    return Example(nn.Sequential(nn.Linear(4, 4), norm).eval(), where=("1",))


def clean() -> Example:
    norm = nn.BatchNorm1d(4, momentum=None)
    norm(torch.randn(64, 4) * torch.tensor([1.0, 1e-1, 1.0, 1.0]))
    return Example(nn.Sequential(nn.Linear(4, 4), norm).eval())
