"""A BatchNorm whose batch is so small that its statistics are mostly noise.

What it does: Estimates the effective number of values behind a layer's batch statistics from how the samples' own means
differ, since positions of one image are alike. It is estimated from inputs at the batch size in training, or step by
step in a watched training. It reports fewer than 8 values, at which the mean is off by 0.35 standard deviations and the
variance by half of itself. `Synced` counts every process's batch, `Ghost` the sub-batch. Where neither `batch_size` nor
a DataLoader says how large batches are in training, the inputs are taken for one, and all layers are one note.

Why it matters: Each sample is standardized by statistics that its few companions decide, and to which it contributes;
evaluation uses the running ones. Accuracy falls with batches of a few images (Wu & He 2018, figure 1).

Example: A BatchNorm on (N, C), trained with batches of 4.

Use instead: `Synced()` over processes, GroupNorm, `Renorm()`, or a larger batch.

Evidence: claim small_batch measures the harm; tests/diagnostics/rules/test_flow_rules.py and
tests/diagnostics/rules/test_watched_rules.py compare the effective number with the spread of batch means.

Limits: From two samples the estimate is noisy. In a watched training the median of the last measured steps counts;
inputs should have as many samples as possible. A model in evaluation is judged only if `batch_size` says how it will be
trained. Inputs do not tell how many processes `Synced` will have.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from gammabeta.diagnostics.fixes import advised
from gammabeta.diagnostics.record import Norm, Record, counted
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.statistics import Batch, Ghost, Renorm

severity = "warning"
sees = "DW"

# Effective values at which the variance has a relative standard error √(2/n) of one half.
FEWEST = 8.0


def check(record: Record) -> Iterator[Match]:
    sure = record.watched is not None or _batch_size(record) is not None
    few: list[Match] = []
    for norm in record.of_kind("batch"):
        source = getattr(norm.module, "statistics", Batch())
        worth = _watched(record, norm) or _given(record, norm, source)
        if norm.frozen or isinstance(source, Renorm) or worth is None or worth[0] >= FEWEST:
            continue
        values, samples = worth
        message = (
            f"a batch of {samples} is worth {values:.1f} values per channel: from batch to batch its mean is off by "
            f"{values**-0.5:.2f} standard deviations, its variance by {(2 / values) ** 0.5:.0%}"
        )
        evidence = {"values": values, "standard_error": values**-0.5, "samples": samples}
        few.append(Match(norm.name, message, evidence, advised(record, norm, *_calls())))
    if sure or not few:
        yield from few
        return
    others = f" (and for {counted(len(few) - 1, 'more layer')})" if len(few) > 1 else ""
    message = f"if batches in training are as large as the inputs: {few[0].message}{others}"
    yield replace(
        few[0], message=message, evidence={**few[0].evidence, "layers": [m.where for m in few]}, severity="note"
    )


def _calls() -> tuple[str, ...]:
    """Return what to call: the calls that suit the number of processes."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ("gammabeta.set_statistics(model, gammabeta.statistics.Synced(){where}) in every process",)
    return (
        'gammabeta.convert(model, to="group"{where}) before training',
        "gammabeta.set_statistics(model, gammabeta.statistics.Renorm(){where}) in a training that goes on",
        "or a larger batch",
    )


def _batch_size(record: Record) -> int | None:
    """Return the number of samples per batch in training, as far as it was said."""
    size = record.batch_size or (record.loader.batch_size if isinstance(record.loader, DataLoader) else None)
    return size if isinstance(size, int) else None


def _watched(record: Record, norm: Norm) -> tuple[float, int] | None:
    """Return the effective number of values of a batch, and its samples, from the watched training."""
    watched = record.watched.norms.get(norm.name) if record.watched is not None else None
    effective = watched.history.median("effective") if watched is not None else None
    return None if watched is None or effective is None else (max(effective, 1e-3), watched.samples)


def _given(record: Record, norm: Norm, source: object) -> tuple[float, int] | None:
    """Return the same from the inputs, for the batch size in training."""
    calls = (record.given or {}).get(norm.name, ())
    if not calls or calls[0].effective is None or not (norm.training or record.batch_size):
        return None
    if not isinstance(source, Batch | Ghost):
        return None
    samples = _batch_size(record) or calls[0].samples
    if isinstance(source, Ghost):
        samples = min(samples, source.size)
    return calls[0].effective / calls[0].samples * samples, samples


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
    return Example(model.train(), where=("1",), inputs=torch.randn(64, 8), batch_size=4)


def clean() -> Example:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
    return Example(model.train(), inputs=torch.randn(64, 8), batch_size=32)
