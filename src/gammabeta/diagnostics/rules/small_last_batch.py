"""A loader whose last batch is one sample, or far smaller than the others.

What it does: From the sizes of the loader's data set and batches, finds a last batch of one sample, or of fewer than an
eighth of the others' samples.

Why it matters: The last batch counts as one step and one update of the running statistics like any other. With few
samples its statistics are noise. With one sample torch raises, at the end of the first epoch, where a BatchNorm gets
one value per channel.

Example: 33 samples in batches of 32.

Use instead: `drop_last=True` for training.

Evidence: tests/diagnostics/rules/test_flow_rules.py: the last batch's mean differs from the data's by the standard
error of its size, six times that of the others.

Limits: It looks only at a `torch.utils.data.DataLoader` with a batch size and a data set that has a length, and only if
there are BatchNorms in training mode: evaluation needs every sample.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record, counted
from gammabeta.diagnostics.rule import Example, Match

severity = "warning"
sees = "L"

SHARE = 1 / 8


def check(record: Record) -> Iterator[Match]:
    loader: Any = record.loader
    if not isinstance(loader, DataLoader) or loader.batch_size is None or loader.drop_last:
        return
    if not any(norm.training and not norm.frozen for norm in record.of_kind("batch")):
        return
    try:
        total = len(loader.sampler)  # type: ignore[arg-type]
    except TypeError:
        return
    last = total % loader.batch_size
    if last and total > loader.batch_size and (last == 1 or last < SHARE * loader.batch_size):
        message = f"the loader's last batch has {counted(last, 'sample')}, the others {loader.batch_size}"
        evidence = {"last": last, "batch_size": loader.batch_size}
        yield Match("", message, evidence, Fix("DataLoader(..., drop_last=True)"))


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    loader = DataLoader(TensorDataset(torch.randn(33, 4)), batch_size=32)
    return Example(model, where=("",), loader=loader)


def clean() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    loader = DataLoader(TensorDataset(torch.randn(33, 4)), batch_size=32, drop_last=True)
    return Example(model, loader=loader)
