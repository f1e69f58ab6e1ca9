"""The operations that are verified: one row each, from which every topic makes its cases.

To verify another operation, add its row here and what torch computes for it in `oracle.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Mode = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """A public function of `gammabeta.functional`.

    Attributes:
        name: the function's.
        over_channels: whether its parameters belong to the channels of (N, C, *positions), not to the last axes.
        modes: settings under which it is another computation.
        adds: whether it returns (norm(x + residual), x + residual), and takes no activation and no mask.
    """

    name: str
    over_channels: bool
    modes: tuple[Mode, ...] = ({},)
    adds: bool = False


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("batch_norm", True, ({"training": True}, {"training": False})),
        Operation("instance_norm", True, ({}, {"running": False}, {"use_input_stats": False})),
        Operation("group_norm", True),
        Operation("layer_norm", False),
        Operation("rms_norm", False),
        Operation("add_layer_norm", False, adds=True),
        Operation("add_rms_norm", False, adds=True),
    )
}

OPS = tuple(OPERATIONS)
CHANNEL_OPS = tuple(name for name, o in OPERATIONS.items() if o.over_channels)
ADD_OPS = tuple(name for name, o in OPERATIONS.items() if o.adds)
SAMPLE_OPS = tuple(name for name in OPS if name not in CHANNEL_OPS + ADD_OPS)


def modes(op: str) -> tuple[Mode, ...]:
    """Return the settings under which the operation is another computation."""
    return OPERATIONS[op].modes


def takes_batch(op: str, mode: Mode) -> bool:
    """Return whether it is BatchNorm by the batch's own statistics."""
    return op == "batch_norm" and bool(mode.get("training"))


def finishes(op: str, activation: str = "silu") -> tuple[Mode, ...]:
    """Return nothing, and a residual with an activation where the operation takes them."""
    return ({},) if OPERATIONS[op].adds else ({}, {"residual": True, "activation": activation})
