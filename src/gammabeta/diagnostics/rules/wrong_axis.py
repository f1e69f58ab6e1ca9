"""A norm whose channels are on another axis than the one it normalizes.

What it does: Looks at norms whose input comes from a linear layer, a convolution or an embedding, with only views
between. It compares the axis of that layer's features with the one that the norm takes for channels: axis 1 for
BatchNorm, InstanceNorm and GroupNorm, the last one for LayerNorm and RMSNorm over one axis.

Why it matters: Nothing raises as long as the sizes fit, and they do if somebody chose them so that the model runs. The
norm then has a γ, a β and a mean for every time step or pixel column, and none for a feature.

Example: BatchNorm1d(20) behind a linear layer that gives (N, 20 steps, 32 features).

Use instead: `x.transpose(1, 2)` around it, or a LayerNorm over the features.

Evidence: tests/diagnostics/rules/test_probed_rules.py: with trained γ and β, the flagged example's output for the same
step changes with its place in the sequence by at least a tenth of its size. The clean one's stays the same.

Limits: Where axes are moved between the layer and the norm, as in token mixers, the axis was chosen and nothing is
reported. Subclasses with a forward of their own, which may move the axes themselves, are not looked at. Normalizing by
time step is sometimes intended. Operations in between, such as a sum or an activation, hide where the features are, and
nothing is reported.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.flow import calls_of, own_forward
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.introspection.neighbours import LAYERS, Neighbours
from gammabeta.introspection.norms import norm_of
from gammabeta.introspection.observe import Call, axis_in

severity = "warning"
sees = "D"


def check(record: Record) -> Iterator[Match]:
    found: set[str] = set()
    for norm, call, x in calls_of(record, "batch", "instance", "group", "layer", "rms"):
        channel = _channel_axis(norm.module)
        if norm.name in found or len(x.shape) < 3 or channel is None or own_forward(norm.module):
            continue
        axis = channel % len(x.shape)
        other = _features_elsewhere(record, call, axis)
        if other is None:
            continue
        found.add(norm.name)
        layer, at = other
        message = (
            f"it normalizes axis {axis} of {x.shape}, of size {x.shape[axis]}; the features of {layer}'s output are on "
            f"axis {at}, of size {x.shape[at]}"
        )
        evidence = {"axis": axis, "features": at, "layer": layer}
        yield Match(norm.name, message, evidence, Fix(f"x.transpose({axis}, {at}) around it"))


def _channel_axis(module: Any) -> int | None:
    norm = norm_of(module)
    return None if norm is None or norm.axes is None else norm.axes.channel


def _features_elsewhere(record: Record, call: Call, axis: int) -> tuple[str, int] | None:
    """Return the layer that made the norm's input, and the axis of its features; None if that is the norm's axis."""
    assert record.model is not None
    x = call.inputs[0]
    neighbours = Neighbours(dict(record.model.named_modules()), record.observed)
    found = neighbours.producer(x, axis, (*LAYERS, nn.Embedding))
    if found is None or found.axis is None:
        return None
    at = axis_in(found.output, found.features, x)
    # Whoever transposed between the two has chosen the axis, as token mixers do.
    return None if at is None or at == axis or at != found.features else (found.call.module, at)


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(20), nn.ReLU())
    return Example(model, where=("1",), inputs=torch.randn(16, 20, 8))


def clean() -> Example:
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU())
    return Example(model, inputs=torch.randn(16, 20, 8))
