"""Channels that do not vary at all on the inputs.

What it does: Finds BatchNorms with channels whose input has the same value for all samples and positions. It is a
warning if the running variance says that they varied in training, and the filters that make them are zero. Otherwise it
is a note.

Why it matters: The filters were zeroed, by pruning for example, or an activation before the norm passes nothing. In
evaluation such a channel is the constant β − γμ/σ with the statistics of a channel that lived. In training it would be
β. `train_eval_gap` has no variance to compare there.

Example: A trained network in which two filters of eight were set to zero.

Use instead: After pruning, `gammabeta.recalibrate(model, batches)`, or remove the channels.

Evidence: tests/diagnostics/rules/test_dead_channels.py: in the flagged example the dead channels' outputs in evaluation
and in training differ by over one standard deviation; after recalibration by rounding.

Limits: Few inputs may leave a channel behind a ReLU at 0 by chance: this is the note, given from 64 values on. Channels
whose running variance is also below ε have been dead for long: GB104 lists them. A layer whose filters are all zero
and whose statistics never moved was initialized so. Norms on the model's own inputs, where a column may be constant,
are left out.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.flow import layer_before
from gammabeta.diagnostics.fixes import recalibration
from gammabeta.diagnostics.gap import still_channels
from gammabeta.diagnostics.record import Norm, Record, channels
from gammabeta.diagnostics.rule import Example, Match

severity = "warning"
sees = "D"

LEAST = 64  # values per channel


def check(record: Record) -> Iterator[Match]:
    if record.given is None or record.observed is None:
        return
    for norm in record.of_kind("batch"):
        calls = record.given.get(norm.name, ())
        seen = record.observed.calls_of(norm.name)
        if len(calls) != 1 or len(seen) != 1 or not seen[0].inputs or not norm.has_statistics:
            continue
        assert norm.running_var is not None
        still = still_channels(calls[0].moments)
        alive = norm.running_var.double().cpu() > (norm.eps or 0.0)
        if calls[0].samples < 2 or record.observed.maker(seen[0].inputs[0].data) is None:
            continue
        zeroed = _zeroed(layer_before(record, seen[0]), still)
        dead = (still.cpu() & alive).nonzero().flatten().tolist()
        enough = int(calls[0].moments.count.max()) >= LEAST
        from_zero = [channel for channel in dead if bool(zeroed[channel])]
        if not dead or (norm.has_initial_statistics and (not from_zero or len(from_zero) == still.numel())):
            continue
        if not from_zero and not enough:
            continue
        yield _match(record, norm, dead, from_zero, norm.running_var)


def _match(record: Record, norm: Norm, dead: list[int], from_zero: list[int], var: Tensor) -> Match:
    message = f"{len(dead)} of {var.numel()} channels of its input do not vary on the inputs: {channels(dead)}"
    if from_zero:
        message += f"; the filters of {len(from_zero)} of them are zero"
    sure = bool(from_zero) and not norm.has_initial_statistics
    if not norm.has_initial_statistics:
        message += f"; in training they did, with a variance of {float(var[dead].median()):.2g}"
    evidence = {"dead": len(dead), "zero filters": len(from_zero), "channels": var.numel()}
    return Match(norm.name, message, evidence, recalibration(record, norm), severity=None if sure else "note")


def _zeroed(before: tuple[str, nn.Module] | None, still: Tensor) -> Tensor:
    """Return which channels' filters are zero, in the layer right before the norm."""
    weight = getattr(before[1], "weight", None) if before is not None else None
    if not isinstance(weight, Tensor) or weight.is_meta or getattr(before[1], "transposed", False):  # type: ignore[index]
        return torch.zeros(still.shape, dtype=torch.bool)
    rows = ~weight.detach().flatten(1).any(1).cpu()
    return rows if rows.shape == still.shape else torch.zeros(still.shape, dtype=torch.bool)


def flagged() -> Example:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    for _ in range(8):  # as trained before
        model(torch.randn(16, 3, 8, 8) + 2)
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter[:2] = 0
    batches = [torch.randn(16, 3, 8, 8) + 2 for _ in range(3)]
    return Example(model.eval(), where=("1",), inputs=torch.randn(16, 3, 8, 8) + 2, loader=batches)


def clean() -> Example:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    for _ in range(8):
        model(torch.randn(16, 3, 8, 8) + 2)
    return Example(model.eval(), inputs=torch.randn(16, 3, 8, 8) + 2)
