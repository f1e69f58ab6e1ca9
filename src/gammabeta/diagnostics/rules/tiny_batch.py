"""A BatchNorm whose batch is so small that its statistics are mostly noise.

What it does: Takes the effective number of values of a layer's batch statistics, from how the samples' own means
differ, since positions of one image are alike. Inputs tell it at the batch size in training; watched training, step by
step. Found under 8 values: the mean is off by 0.35 standard deviations, the variance by half of itself. `Synced` counts
every process's batch, `Ghost` the sub-batch.

Why it matters: Each sample is then standardized by statistics that its few companions decide, and that it helped to
make; evaluation takes the running ones. Accuracy falls with batches of a few images (Wu & He 2018, figure 1).

Example: A BatchNorm on (N, C), trained with batches of 4.

Use instead: `Synced()` over processes, GroupNorm, `Renorm()`, or a larger batch.

Evidence: claim small_batch measures the harm; tests/diagnostics/rules/test_flow_rules.py and
tests/diagnostics/rules/test_watched_rules.py hold the effective number against the spread of batch means.

Limits: Of two samples the estimate is noisy: of watched training the median of the last measured steps counts, inputs
should have as many samples as there are. A model in evaluation is judged only if `batch_size` says how it will be
trained. How many processes `Synced` will have, inputs don't tell.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.statistics import Batch, Ghost, Renorm

severity = "warning"
sees = "DW"

# Values: a relative standard error of the variance, √(2/n), of a half.
FEWEST = 8.0


def check(record: Record) -> Iterator[Match]:
    for norm in record.of_kind("batch"):
        source = getattr(norm.module, "statistics", Batch())
        worth = _watched(record, norm) or _given(record, norm, source)
        if norm.frozen or isinstance(source, Renorm) or worth is None or worth[0] >= FEWEST:
            continue
        values, samples = worth
        message = (
            f"a batch of {samples} is worth {values:.1f} values a channel: from batch to batch its mean is off by "
            f"{values**-0.5:.2f} standard deviations, its variance by {(2 / values) ** 0.5:.0%}"
        )
        evidence = {"values": values, "standard_error": values**-0.5, "samples": samples}
        fix = Fix("gammabeta.statistics.Synced() over processes, Renorm(), GroupNorm, or a larger batch")
        yield Match(norm.name, message, evidence, fix)


def _watched(record: Record, norm: Norm) -> tuple[float, int] | None:
    """The effective values of a batch, and its samples, as training showed them."""
    watched = record.watched.norms.get(norm.name) if record.watched is not None else None
    effective = watched.history.median("effective") if watched is not None else None
    return None if watched is None or effective is None else (max(effective, 1e-3), watched.samples)


def _given(record: Record, norm: Norm, source: object) -> tuple[float, int] | None:
    """The same, from what inputs tell, for the batch size in training."""
    calls = (record.given or {}).get(norm.name, ())
    if not calls or calls[0].effective is None or not (norm.training or record.batch_size):
        return None
    if not isinstance(source, Batch | Ghost):
        return None
    samples = record.batch_size or calls[0].samples
    if isinstance(source, Ghost):
        samples = min(samples, source.size)
    return calls[0].effective / calls[0].samples * samples, samples


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
    return Example(model.train(), where=("1",), inputs=torch.randn(64, 8), batch_size=4)


def clean() -> Example:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
    return Example(model.train(), inputs=torch.randn(64, 8), batch_size=32)
