"""Questions that several rules ask: a norm's calls, the layer before it, whether it has a forward of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gammabeta.diagnostics.record import Norm, Record
from gammabeta.introspection.neighbours import Neighbours
from gammabeta.introspection.observe import Call, Observation, Seen


def calls_of(record: Record, *kinds: str) -> Iterator[tuple[Norm, Call, Seen]]:
    """Yield every call with a tensor of norms of these kinds: the norm, the call, and its input."""
    observation: Observation = record.observed
    by_name = {name: norm for norm in record.of_kind(*kinds) for name in norm.names}
    for call in observation.calls:
        if call.module in by_name and call.inputs:
            yield by_name[call.module], call, call.inputs[0]


def layer_before(record: Record, call: Call) -> tuple[str, Any] | None:
    """Return the convolution or linear layer whose output is the call's input, through views that keep the channels.

    Returns:
        Its qualified name and the layer; None if there is none, or if something else reads its output too.
    """
    assert record.model is not None
    observation: Observation = record.observed
    neighbours = Neighbours(dict(record.model.named_modules()), observation)
    found = neighbours.producer(call.inputs[0], 1)
    if found is None or not found.is_viewed or found.axis != found.features:
        return None
    alone = not neighbours.readers(found.output.data, call) and neighbours.escape(found.output.data) is None
    once = len(observation.calls_of(found.call.module)) == len(observation.calls_of(call.module)) == 1
    return (found.call.module, found.layer) if alone and once else None


def own_forward(module: Any) -> bool:
    """Return whether a norm's forward is neither torch's nor gammabeta's, and so may do more, or on other axes."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    return not type(module).forward.__module__.startswith(("torch.nn.modules.", "gammabeta."))
