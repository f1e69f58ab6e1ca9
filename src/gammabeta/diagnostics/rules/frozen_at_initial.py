"""A norm that normalizes by statistics still at 0 and 1.

What it does: Finds frozen BatchNorms that are exactly as constructed: γ = 1, β = 0, mean 0 and variance 1. γ may be 0
too, where many networks begin the last norm of a block. Frozen are norms with the source `Running`, FrozenBatchNorms of
other libraries, norms in evaluation mode inside a model in training mode, and those that a fix of GB101 would freeze.
Given inputs, or while watching, the inputs of each are compared with 0 and 1. It is a warning if those of one differ by
half a standard deviation, or by a factor of two in the variance, and nothing is found if none do. Without inputs it is
a note, and a warning if other norms of the model show traces of training. As a note, finds norms in evaluation whose
statistics never moved, although those of others did, on inputs that are far from 0 and 1.

Why it matters: Such a norm returns its input as it is. The network is one without normalization, which nobody designed,
and freezing keeps it so for the whole training. The usual cause is a checkpoint that was not loaded, or that was loaded
after the layers had been replaced, with `strict=False` (pytorch/vision#5443).

Example: A backbone of convolutions and BatchNorms that is frozen before any weights were loaded.

Use instead: Load the checkpoint, then freeze. Without a checkpoint let the norms train, or estimate their statistics
first: `gammabeta.recalibrate(model, batches)`.

Evidence: tests/diagnostics/rules/test_frozen_at_initial.py: on inputs of mean 3, the flagged example's norm returns its
input up to ε, with a mean over two standard deviations from 0; recalibrated it is within a tenth of one.

Limits: Weights that were converted with mean and variance folded into γ and β have γ and β other than 1 and 0, and are
not found, and neither is a γ of 0 among them. A model that is meant to start with random weights and frozen norms is
found, and does train without normalization. A new norm in a pretrained model has not moved either, and is the note
where it is not frozen.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.fixes import is_still
from gammabeta.diagnostics.gap import SHIFT, gap_of
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.diagnostics.rules import frozen_norm_thaws
from gammabeta.surgery.freeze import freeze

severity = "warning"
sees = "SDW"

_FIX = Fix("load the checkpoint before freezing; without one, gammabeta.recalibrate(model, batches) or let them train")


def check(record: Record) -> Iterator[Match]:
    if record.model is None:
        return
    norms = [norm for norm in record.of_kind("batch") if norm.has_statistics]
    thawing = {match.where for match in frozen_norm_thaws.check(record) if match.fix}  # frozen as they are
    still = {norm.name for norm in norms if record.model.training and norm.tracks and not norm.training}
    still |= {norm.name for norm in norms if not norm.tracks and is_still(norm)}  # by track_running_stats = False
    frozen = [norm for norm in norms if norm.frozen or norm.name in thawing | still]
    ill = [norm for norm in frozen if _as_constructed(norm)]
    if any(norm.has_initial_statistics and norm not in ill for norm in frozen):  # folded: a γ of 0 stays 0
        ill = [norm for norm in ill if not _is_zero(norm)]
    if ill:
        yield from _frozen(record, ill, len(frozen), norms)
    else:
        yield from _never_moved(record, [norm for norm in norms if not (norm.frozen or norm.training)])


def _frozen(record: Record, ill: list[Norm], frozen: int, norms: list[Norm]) -> Iterator[Match]:
    looked_at = {norm.name: found for norm in ill if (found := _far(record, norm)) is not None}
    far = {name: text for name, text in looked_at.items() if text}
    if looked_at and not far:
        return
    others = [norm for norm in norms if norm not in ill]
    trained = [norm for norm in others if not norm.has_initial_statistics or _varies(norm.weight) or _varies(norm.bias)]
    first = next(iter(far), ill[0].name)
    message = _as_they_are(ill, frozen)
    if far:
        message += f"; this one's input is not at 0 and 1: {far[first]}"
    elif trained:
        message += f", although {len(trained)} other BatchNorms of the model have moved"
    evidence = {"frozen": frozen, "as constructed": len(ill), "far": len(far), "others that moved": len(trained)}
    yield Match(first, message, evidence, _FIX, severity=None if far or trained else "note")


def _as_they_are(ill: list[Norm], frozen: int) -> str:
    """Return in words what the norms are and compute."""
    zeros = sum(_is_zero(norm) for norm in ill)
    ones = len(ill) - zeros
    scale = "γ 1" if not zeros else "γ 1 or 0" if ones else "γ 0"
    values = f"exactly as constructed ({scale}, β 0, mean 0, variance 1)"
    if len(ill) == 1:
        return f"it is frozen and {values}: it {'returns zeros' if zeros else 'returns its input unchanged'}"
    which = f"all {frozen}" if len(ill) == frozen else f"{len(ill)} of {frozen}"
    if zeros and ones:
        inputs = "returns its input" if ones == 1 else "return their inputs"
        does = f"{ones} {inputs} unchanged, and {zeros} return{'s' * (zeros == 1)} zeros"
    else:
        does = "they return zeros" if zeros else "they return their inputs unchanged"
    return f"{which} frozen BatchNorms are {values}: {does}"


def _never_moved(record: Record, norms: list[Norm]) -> Iterator[Match]:
    moved = sum(not norm.has_initial_statistics for norm in norms)
    for norm in norms:
        # If γ or β vary, training shows, and untrained-statistics says so.
        if not moved or not norm.has_initial_statistics or _varies(norm.weight) or _varies(norm.bias):
            continue
        far = _far(record, norm)
        if far:
            message = f"its statistics never moved, although those of {moved} others did, and its input is far: {far}"
            fix = Fix("train it, or gammabeta.recalibrate(model, batches)")
            yield Match(norm.name, message, {"others that moved": moved}, fix, severity="note")


def _far(record: Record, norm: Norm) -> str | None:
    """Return in words how far the norm's input is from 0 and 1; "" if it is not, and None if nothing is known."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    calls = (record.given or {}).get(norm.name, ())
    gap = gap_of(calls[0], norm.running_mean, norm.running_var, norm.eps or 0.0) if len(calls) == 1 else None
    if gap is not None:
        return str(gap) if gap.matters else ""
    watched = record.watched.norms.get(norm.name) if record.watched is not None else None
    median = watched.history.median("gap") if watched is not None else None
    if median is None:
        return None
    return f"the batches' statistics are {median:.2f} standard deviations away" if median > SHIFT else ""


def _as_constructed(norm: Norm) -> bool:
    bias = norm.bias
    is_scaled = norm.weight is not None and (norm.weight.is_meta or not bool((norm.weight == 1).all()))
    return (
        norm.has_initial_statistics
        and (not is_scaled or _is_zero(norm))
        and (bias is None or (not bias.is_meta and not bool(bias.any())))
    )


def _is_zero(norm: Norm) -> bool:
    return norm.weight is not None and not norm.weight.is_meta and not bool(norm.weight.any())


def _varies(values: Tensor | None) -> bool:
    return values is not None and not values.is_meta and values.numel() > 1 and not bool((values == values[0]).all())


def flagged() -> Example:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    freeze(backbone, affine=True)
    model = nn.Sequential(backbone, nn.Flatten(), nn.Linear(8 * 6 * 6, 10))
    return Example(model.train(), where=("0.1",), inputs=torch.randn(16, 3, 8, 8) + 3)


def clean() -> Example:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    for _ in range(8):  # as trained before
        backbone(torch.randn(16, 3, 8, 8) + 3)
    freeze(backbone, affine=True)
    model = nn.Sequential(backbone, nn.Flatten(), nn.Linear(8 * 6 * 6, 10))
    return Example(model.train(), inputs=torch.randn(16, 3, 8, 8) + 3)
