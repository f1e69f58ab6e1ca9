"""The bytes that a forward keeps for backward, as the model is and with `recompute`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from gammabeta.introspection.forward import Forward, forward_batch
from gammabeta.introspection.unchanged import unchanged
from gammabeta.surgery.remaking import remaking


class KeptBytes(NamedTuple):
    """The bytes of the tensors that a forward keeps for backward, each storage once; parameters and buffers aside."""

    as_it_is: int
    with_recompute: int


def kept_bytes(model: nn.Module, inputs: Any, forward: Forward | None = None) -> KeptBytes:
    """Measure the bytes in two forwards, which leave no trace; `forward` as for `forward_batch`.

    Raises:
        Exception: whatever the model's forward raises.
    """
    run, found = forward_batch("recompute", forward), []
    aside = {*model.parameters(), *model.buffers()}
    for remake in (False, True):
        with unchanged(model), torch.enable_grad(), remaking(remake=remake, count=True) as mode:
            result = run(model, inputs)
        found.append(mode.kept_bytes(aside))
        del result
    return KeptBytes(*found)
