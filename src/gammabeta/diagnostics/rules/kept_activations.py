"""A training that keeps activations which its norms could make again.

What it does: Given `intent="memory"` and inputs, measures the bytes that a forward keeps for backward, and how many it
would keep after `gammabeta.recompute`.

Why it matters: A norm keeps its input for backward, and the layer behind it keeps the norm's output: the same values
twice. The output can be made again from the input and the statistics, by one pass over memory. Activations are most of
what the training of a convolutional network takes, and they bound the batch.

Example: A ResNet-50 keeps 0.55 of the bytes, and a MobileNetV2 0.35.

Use instead: `gammabeta.recompute(model)`; before it `gammabeta.adopt` and `gammabeta.fuse`, which make it faster.

Evidence: tests/surgery/test_recompute.py: the gradients have the same bits, and malloc has handed out as many bytes as
are named here.

Limits: It is a note, and runs only with that intent. The bytes are those of the inputs' shapes, in the model's present
mode. Below a tenth it says nothing. Under torch.compile the partitioner chooses what is kept.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.surgery.kept_bytes import kept_bytes
from gammabeta.surgery.recompute import is_recomputing

severity = "note"
sees = "D"

# A smaller share of the bytes is not worth a change.
_LEAST = 0.1


def check(record: Record) -> Iterator[Match]:
    if record.intent != "memory" or record.model is None or not record.norms or is_recomputing(record.model):
        return
    kept = kept_bytes(record.model, record.inputs, record.forward)
    if kept.as_it_is == 0 or kept.with_recompute > (1 - _LEAST) * kept.as_it_is:
        return
    message = (
        f"a forward keeps {kept.as_it_is / 1e6:.1f} MB for backward, of which norms could make "
        f"{1 - kept.with_recompute / kept.as_it_is:.0%} again"
    )
    evidence = {"bytes_kept": kept.as_it_is, "bytes_with_recompute": kept.with_recompute}
    yield Match("", message, evidence, Fix("gammabeta.recompute(model)"))


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    return Example(model, where=("",), inputs=torch.randn(4, 3, 16, 16), intent="memory")


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    return Example(model, inputs=torch.randn(4, 3, 16, 16))
