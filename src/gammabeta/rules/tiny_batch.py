"""A BatchNorm whose batch is so small that its statistics are mostly noise.

What it does: From the effective number of values that a layer's statistics are taken from, scaled to the batch size in
training, takes the standard error of the batch mean; found from 0.35 standard deviations on, that is, under 8 values.

Why it matters: Each sample is then standardized by statistics that its few companions decide. Positions of an image are
alike: 49 of them count for less than 49. The noise is another every step, and the running statistics are an average of
it.

Example: A BatchNorm on (N, C), trained with batches of 4.

Use instead: `Synced` over processes, GroupNorm, `Renorm`, or a larger batch.

Evidence: claim small_batch measures the harm; tests/rules/test_flow_rules.py holds the standard error against the
spread of batch means.

Limits: The effective number is estimated from the inputs that are given, and needs two samples at the least. A model in
evaluation is judged only if `batch_size` says how it will be trained.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnosis import Finding, Fix
from gammabeta.record import Record
from gammabeta.rule import Example
from gammabeta.statistics import Batch, Ghost

code = "GB202"
name = "tiny-batch"
severity = "warning"
sees = "D"

VALUES = 8.0


def check(record: Record) -> Iterator[Finding]:
    for norm in record.of_kind("batch"):
        calls = (record.given or {}).get(norm.name, ())
        source = getattr(norm.module, "statistics", Batch())
        if norm.frozen or not calls or not (norm.training or record.batch_size):
            continue
        if not isinstance(source, (Batch, Ghost)):
            continue
        given = calls[0]
        if given.effective is None:
            continue
        samples = record.batch_size or given.samples
        if isinstance(source, Ghost):
            samples = min(samples, source.size)
        values = given.effective / given.samples * samples
        if values < VALUES:
            message = (
                f"a batch of {samples} is worth {values:.1f} values a channel: its mean is off by {values**-0.5:.2f} "
                "standard deviations from batch to batch"
            )
            evidence = {"values": values, "standard_error": values**-0.5, "samples": samples}
            fix = Fix("gammabeta.statistics.Synced() over processes, Renorm(), GroupNorm, or a larger batch")
            yield Finding(code, name, severity, norm.name, message, evidence, fix)


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
    return Example(model.train(), where=("1",), inputs=torch.randn(64, 8), batch_size=4)


def clean() -> Example:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
    return Example(model.train(), inputs=torch.randn(64, 8), batch_size=32)
