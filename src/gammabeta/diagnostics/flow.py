"""Questions that several rules ask of an observation: what a norm is called with, and what stands before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from gammabeta.diagnostics.record import Norm, Record
from gammabeta.introspection.observe import Call, Observation, Seen, axis_in

LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip


def calls_of(record: Record, *kinds: str) -> Iterator[tuple[Norm, Call, Seen]]:
    """Every call of the norms of these kinds with a tensor: the norm, the call, what it is given."""
    observation: Observation = record.observed
    by_name = {name: norm for norm in record.of_kind(*kinds) for name in norm.names}
    for call in observation.calls:
        if call.module in by_name and call.inputs:
            yield by_name[call.module], call, call.inputs[0]


def layer_before(record: Record, call: Call) -> tuple[str, Any] | None:
    """The convolution or linear layer whose output, through views that keep the channels, is what the call is given.

    None where there is none, or where somebody else reads that output too.
    """
    assert record.model is not None
    observation: Observation = record.observed
    modules = dict(record.model.named_modules())
    for seen, axis in observation.trail(call.inputs[0], 1):
        for giver in observation.givers(seen.data):
            layer = modules[giver.module]
            if not isinstance(layer, LAYERS) or len(giver.outputs) != 1:
                continue
            out = giver.outputs[0]
            features = (
                len(out.shape) - 1 if isinstance(layer, nn.Linear) else len(out.shape) - 1 - len(layer.kernel_size)
            )
            readers = [op for op in observation.readers(out.data) if not observation.is_within(op, call)]
            alone = not readers and out.data not in observation.kept and out not in observation.outputs
            once = len(observation.calls_of(giver.module)) == len(observation.calls_of(call.module)) == 1
            return (giver.module, layer) if axis_in(seen, axis, out) == features and alone and once else None
    return None
