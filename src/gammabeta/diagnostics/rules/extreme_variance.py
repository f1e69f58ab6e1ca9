"""Channels whose variance is so small or so large that something else decides the output.

What it does: Finds channels whose running variance is below ε, and channels whose running mean or variance exceeds
float16's largest number, 65,504. It gives one note for all layers, with the numbers of the first.

Why it matters: With σ² below ε the layer divides by √ε rather than by σ. The channel is not standardized and its output
is small. A change of ε, which a conversion to another framework may bring, changes the model. Most such channels are
dead: nothing arrives. A variance above 65,504 becomes infinite once the buffers are cast to float16, and the channel's
output zero.

Example: A channel whose values differ by 10⁻⁴.

Use instead: Keep ε as it was in training, and keep norms in float32 (gammabeta's stay so in a model cast by `.half()`).

Evidence: tests/diagnostics/rules/test_extreme_variance.py: at σ² = ε/100 the output's variance is 0.0099 in place of 1.
A variance of 10⁵ cast to float16 makes the output 0, where it had variance 1.

Limits: It is a note: the network was trained with this ε and in this dtype, and is right as it is. Trained networks
have dead channels, from weight decay and ReLU, and they do no harm there. In a checkpoint ε is taken to be 1e-5.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Norm, Record, channels, counted
from gammabeta.diagnostics.rule import Example, Match

severity = "note"
sees = "SF"

_LARGEST = torch.finfo(torch.float16).max
_EPS = 1e-5  # torch's default: a checkpoint does not store ε


def check(record: Record) -> Iterator[Match]:
    found: list[tuple[Norm, str, dict[str, Any]]] = []
    for norm in record.norms:
        if not norm.has_statistics:
            continue
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, var = norm.running_mean.float().flatten(), norm.running_var.float().flatten()
        eps = _EPS if norm.eps is None else norm.eps
        # Negative and infinite ones are left to poisoned-statistics, those of 0 to dead-channels.
        dead = _is_constant(record, norm, var)
        small = ((var > 0) & (var < eps) & ~dead).nonzero().flatten().tolist()
        size = torch.maximum(*_largest(record, norm, mean, var))
        large = (size > _LARGEST).nonzero().flatten()
        parts: list[str] = []
        evidence: dict[str, Any] = {}
        if small:
            least = var[small].min().item()
            parts.append(
                f"variance below ε ({eps:g}) in {len(small)} of {var.numel()} channels, down to {least:.2g}: "
                f"{channels(small)}; ε decides their output"
            )
            evidence |= {"under eps": len(small), "least variance": least}
        if len(large):
            most = size[large].max().item()
            parts.append(
                f"statistics beyond float16's 65504 in {len(large)} of {var.numel()} channels, up to {most:.3g}: "
                f"{channels(large.tolist())}"
            )
            evidence |= {"beyond float16": len(large), "largest": most}
        if parts:
            found.append((norm, "; ".join(parts), evidence))
    if found:
        first, message, evidence = found[0]
        message += f" (and in {counted(len(found) - 1, 'more layer')})" if len(found) > 1 else ""
        evidence["layers"] = [norm.name for norm, *_ in found]
        yield Match(
            first.name,
            message,
            evidence,
            Fix("keep ε, and keep norms in float32: gammabeta.adopt(model) before model.half()"),
        )


def _is_constant(record: Record, norm: Norm, var: Tensor) -> Tensor:
    """Return which channels do not vary on the inputs given: dead-channels reports these."""
    constant = torch.zeros_like(var, dtype=torch.bool)
    for call in (record.given or {}).get(norm.name, ()):
        constant |= call.moments.var(0).flatten().to(var.device) == 0
    return constant


def _largest(record: Record, norm: Norm, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return the larger size of each statistic: the running one's, and that of what the norm is given on the inputs.

    What is not finite counts as 0: other rules report it.
    """
    sizes = [(mean.abs(), var)]
    sizes += [(c.moments.mean.abs(), c.moments.var(1)) for c in (record.given or {}).get(norm.name, ())]
    pairs = [(m.float().to(mean.device).flatten(), v.float().to(mean.device).flatten()) for m, v in sizes]
    means, variances = zip(*pairs, strict=True)
    finite = [torch.stack(values).nan_to_num(0.0, 0.0, 0.0).amax(0) for values in (means, variances)]
    return finite[0], finite[1]


def flagged() -> Example:
    norm = nn.BatchNorm1d(4, momentum=None)
    norm(torch.randn(64, 4) * torch.tensor([1.0, 1e-4, 1.0, 1.0]))
    return Example(nn.Sequential(nn.Linear(4, 4), norm).eval(), where=("1",))


def clean() -> Example:
    norm = nn.BatchNorm1d(4, momentum=None)
    norm(torch.randn(64, 4) * torch.tensor([1.0, 1e-1, 1.0, 1.0]))
    return Example(nn.Sequential(nn.Linear(4, 4), norm).eval())
