"""A BatchNorm that gets one value per channel in training.

What it does: Finds BatchNorms that, on the given inputs or at the given batch size, take statistics of one sample with
one position. It reports them before torch raises "Expected more than 1 value per channel when training", and names the
layer.

Why it matters: The variance of one value is 0, and the output would be β for every input, so torch refuses. It happens
after global pooling, in squeeze-and-excitation blocks, and in the last batch of an epoch.

Example: A BatchNorm on 1×1 maps, trained with batches of one.

Use instead: Batches of at least two (`drop_last=True` for the last one), or in that place a norm that looks at one
sample.

Evidence: tests/diagnostics/rules/test_flow_rules.py: torch raises on the flagged example, and not on the clean one.

Limits: It looks at the sizes of the given inputs. A model in evaluation is judged only if `batch_size` says how it will
be trained.
"""

from collections.abc import Iterator
from math import prod

import torch
from torch import nn

from gammabeta.diagnostics.fixes import advised
from gammabeta.diagnostics.flow import calls_of
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match

severity = "error"
sees = "D"


def check(record: Record) -> Iterator[Match]:
    found: set[str] = set()
    for norm, _, x in calls_of(record, "batch"):
        if norm.frozen or norm.name in found or len(x.shape) < 2 or not (norm.training or record.batch_size):
            continue
        samples, positions = record.batch_size or x.shape[0], prod(x.shape[2:])
        if samples * positions != 1:
            continue
        found.add(norm.name)
        shape = (samples, *x.shape[1:])
        message = f"in training it gets 1 value per channel, from {shape}: torch raises; the smallest batch is 2"
        fix = advised(
            record,
            norm,
            "DataLoader(..., drop_last=True), with batches of at least 2 samples",
            'or, before training, gammabeta.convert(model, to="group"{where})',
        )
        yield Match(norm.name, message, {"samples": samples, "positions": positions}, fix)


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model.train(), where=("2",), inputs=torch.randn(1, 3, 8, 8))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model.train(), inputs=torch.randn(2, 3, 8, 8))
