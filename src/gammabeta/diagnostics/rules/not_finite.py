"""Values that are not finite: in parameters, in outputs, or in a training that diverged.

What it does: Finds parameters, and vectors of a checkpoint, that hold NaN or infinity. Given inputs, finds outputs that
do, and names the first module whose inputs are finite and whose outputs are not. While watching, finds the step at
which it began, and the module; or the update that made the parameters explode, with the largest of them and the
learning rate. Running statistics are those of GB102.

Why it matters: Nothing that is computed from a NaN is of use, and no later step removes it. Training goes on for hours
without an error, and checkpoints are saved.

Example: A γ with one NaN.

Use instead: The last checkpoint that is finite. Then remove the cause at the module that is named: a learning rate that
is too high, a division by or logarithm of zero, an overflow in float16, or a batch that is not finite.

Evidence: tests/diagnostics/rules/test_not_finite.py: one NaN in the flagged example's γ makes one channel of every
output NaN, and one step of SGD all parameters.

Limits: Where the last forward was finite again, as after a skipped batch or a restored checkpoint, it is a note. −∞
alone is left out in outputs and buffers, and in parameters that do not train and are neither weight nor bias: masks
hold it on purpose. Of a checkpoint only vectors are looked at: a training that diverged leaves no vector
finite. On a GPU a watched training is looked at in measured steps, so that no step waits; then the step is exact, and
the module is named only if that step was measured. Of a training on several processes, and of compiled models, no
module is named; of compiled models the step is known only to lie between two measured ones. Parameters exploded if the
largest is 10,000 times as large as in the measured step before.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.outputs import PARAMETERS, not_below_infinity, spoiled
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match

severity = "error"
sees = "SFDW"

_FIX = Fix("go back to the last checkpoint that is finite, and remove the cause where it began")
_SLOWER = Fix(
    "go back to the last checkpoint that is finite, with a lower learning rate, a warm-up, or clipped gradients"
)
_OVER = Fix("nothing, if it was one batch or one overflow that was skipped; remove the cause if it comes again")
# GB102's.
_STATISTICS = ("running_mean", "running_var")


def check(record: Record) -> Iterator[Match]:
    divergence = record.watched.divergence if record.watched is not None else None
    bad, total = _bad_tensors(record)
    parts: list[str] = []
    where: str | None = None
    evidence: dict[str, Any] = {}
    if divergence is not None:
        parts.append(str(divergence))
        where, evidence = divergence.where, {"step": divergence.step, "cause": divergence.cause}
    seen = record.probe.not_finite if record.probe is not None else None
    if seen is not None and not (not bad and _is_poisoned(record, seen.where)):
        parts.append(_of_outputs(seen, named=not bad))
        where = seen.where if where is None else where
    if bad:
        what = "parameters" if record.model is not None else "tensors"
        names = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        parts.append(f"{len(bad)} of {total} {what} are not finite: {names}")
        if divergence is None or (where is None and divergence.explosion is None):
            where = bad[0].rpartition(".")[0]
        evidence = {**evidence, "tensors": len(bad), "of": total}
    over = divergence is not None and divergence.recovered and not bad and seen is None
    if parts:
        exploded = divergence is not None and divergence.explosion is not None
        fix, severity = (_OVER, "note") if over else (_SLOWER if exploded else _FIX, None)
        yield Match(where or "", "; ".join(parts), evidence, fix, severity)


def spoils(record: Record) -> bool:
    """Return whether parameters are not finite, or outputs for another reason than the running statistics.

    Then statistics that are measured anew are not finite either.
    """
    bad, _ = _bad_tensors(record)
    seen = record.probe.not_finite if record.probe is not None else None
    return bool(bad) or (seen is not None and not _is_poisoned(record, seen.where))


def _of_outputs(seen: Any, *, named: bool) -> str:
    if seen.inputs:
        return "the inputs given are not finite, and neither are the outputs"
    text = f"the outputs on the inputs are not finite in {seen.mode} mode"
    if not named or seen.place is None:
        return text
    if seen.where:
        text += ", from this module on: its inputs are finite, its outputs are not"
    return text + f"; {seen.place.between}" * bool(seen.place.between)


def _is_poisoned(record: Record, where: str | None) -> bool:
    """Whether it began at a norm whose running statistics are not finite, which is another rule's finding."""
    for norm in record.norms:
        if where in norm.names and norm.has_statistics:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            return not bool(
                (norm.running_mean.isfinite() & norm.running_var.isfinite() & (norm.running_var >= 0)).all()
            )
    return False


def _bad_tensors(record: Record) -> tuple[list[str], int]:
    """Return the names of the tensors that are not finite, and how many were looked at."""
    if record.model is not None:
        of_norms = {id(tensor) for norm in record.norms for tensor in (norm.running_mean, norm.running_var)}
        tensors: dict[str, Tensor] = dict(record.model.named_parameters())
        buffers = dict(record.model.named_buffers())
    else:
        tensors = {k: t for k, t in record.tensors.items() if k.rpartition(".")[2] in PARAMETERS}
        buffers = {k: t for k, t in record.tensors.items() if k not in tensors}
        of_norms = set()
    flags = {name: flag for name, t in tensors.items() if (flag := spoiled(name, t)) is not None}
    # Masks hold −∞, and observers of quantization +∞ before the first batch: of buffers, only NaN counts.
    for name, tensor in buffers.items():
        if name.rpartition(".")[2] not in _STATISTICS and id(tensor) not in of_norms:
            flag = not_below_infinity(tensor)
            if flag is not None:
                flags[name] = flag & tensor.detach().amax().isnan()
    if not flags:
        return [], 0
    # One transfer from each device.
    by_device: dict[torch.device, list[str]] = {}
    for name, flag in flags.items():
        by_device.setdefault(flag.device, []).append(name)
    bad: set[str] = set()
    for names in by_device.values():
        found = torch.stack([flags[name] for name in names]).tolist()
        bad.update(name for name, flag in zip(names, found, strict=True) if flag)
    return [name for name in flags if name in bad], len(flags)


def flagged() -> Example:
    norm = nn.LayerNorm(8)
    with torch.no_grad():
        norm.weight[3] = float("nan")
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 2))
    return Example(model, where=("1",))


def clean() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    return Example(model)
