"""Trained weights beside running statistics that were never collected.

What it does: Finds BatchNorms whose running mean and variance are exactly 0 and 1 although the layer was trained: its β
differs between channels, or its γ does while another layer's statistics have moved. Also finds layers with statistics
but a `num_batches_tracked` of 0 where `momentum=None` averages by that count.

Why it matters: In evaluation such a layer passes its input on unchanged except for γ and β, where training standardized
it: activations of any size. Causes are a converter that dropped the buffers, `load_state_dict(strict=False)`, weights
averaged without their buffers, or `reset_running_stats()`.

Example: A trained model whose second BatchNorm lost its buffers.

Use instead: `gammabeta.recalibrate(model, batches)`, or load the buffers.

Evidence: tests/diagnostics/rules/test_untrained_statistics.py: a network for two classes is right on over 97 % of the
samples, and on under 60 % once the buffers are reset; recalibrating restores it.

Limits: γ and β that were folded into a layer on purpose, with statistics set to 0 and 1, look the same: ignore the rule
there. A FrozenBatchNorm is left out, since converted weights commonly have such statistics; in a checkpoint it is a
layer without num_batches_tracked, and a warning. A new layer in a trained model, with γ of 1 and β of 0, is not found;
nor is a layer without γ and β.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.fixes import recalibration
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match

severity = "error"
sees = "SF"


def check(record: Record) -> Iterator[Match]:
    tracking = [norm for norm in record.norms if norm.has_statistics and not norm.frozen]
    initial = {norm for norm in tracking if norm.has_initial_statistics}
    moved = len(tracking) - len(initial)
    for norm in tracking:
        if norm in initial:
            if _varies(norm.bias) or (moved and _varies(norm.weight)):
                # A checkpoint does not say whether this is a FrozenBatchNorm, but those count no batches.
                sure = record.model is not None or norm.batches is not None
                yield Match(
                    norm.name,
                    f"running mean and variance are exactly 0 and 1, {_trained(norm)}",
                    {"batches": norm.batches, "others that moved": moved},
                    recalibration(record, norm),
                    severity=None if sure else "warning",
                )
        elif norm.batches == 0 and record.model is not None and norm.tracks and norm.momentum is None:
            yield Match(
                norm.name,
                "num_batches_tracked is 0 although the statistics have moved, and momentum=None averages by that "
                "count: the next batch in training replaces them",
                {"batches": 0},
                recalibration(record, norm),
                severity="warning",
            )


def _trained(norm: Norm) -> str:
    parts = [
        f"{symbol} ranges from {values.min():.3g} to {values.max():.3g}"
        for symbol, values in (("γ", norm.weight), ("β", norm.bias))
        if values is not None and _varies(values)
    ]
    return "yet " + " and ".join(parts)


def _varies(values: Tensor | None) -> bool:
    """Whether training changed the values: constructors give all channels the same γ and the same β."""
    return values is not None and not values.is_meta and values.numel() > 1 and not bool((values == values[0]).all())


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(32, 4)).square().sum().backward()
    optimizer.step()
    lost = {key: value for key, value in model.state_dict().items() if not key.startswith("4.running")}
    fresh = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    fresh.load_state_dict(lost, strict=False)
    return Example(fresh.eval(), where=("4",), loader=[torch.randn(32, 4) for _ in range(3)])


def clean() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(32, 4)).square().sum().backward()
    optimizer.step()
    fresh = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    fresh.load_state_dict(model.state_dict())
    return Example(fresh.eval())
