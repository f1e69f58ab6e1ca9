"""Gradient accumulation: BatchNorm sees only a part of the batch that the optimizer sees.

What it does: Finds BatchNorms that have several forwards per optimizer step, each with its own backward, and whose
running statistics move at each of them. Forwards with other parameters than the one before, as the second of SAM or
those of a line search, are no accumulation: where running statistics move there too, one note says so. Parts of 32
samples and more are a note each: such batches are usual as a whole. Forwards on inputs that require gradients beside
others that do not are left out, since they are for another model's loss, as a generator's through its discriminator;
where several others remain, it is a note.

Why it matters: Gradients add up, statistics do not. Each part is normalized on its own, so the layer trains on a batch
as small as the part. The running statistics move several times per step, so they reach back fewer steps than momentum
says (pytorch#46516, ultralytics/yolov5#1630).

Example: Four micro-batches per step.

Use instead: `gammabeta.accumulate_statistics(model)` around the micro-batches of a step: the statistics move once, by
the exact moments of all parts together. Each part is still normalized on its own; `Renorm` and GroupNorm do not depend
on that.

Evidence: tests/diagnostics/rules/test_watched_rules.py: eight steps of four parts move the flagged example's statistics
32 times, the clean one's 8 times.

Limits: It finds nothing without an optimizer, or where γ and β do not train. Parameters that change within a step are
seen in the model's own forwards only.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.diagnostics.rules import mixed_domains
from gammabeta.surgery.adopt import adopt
from gammabeta.surgery.contexts import accumulate_statistics

severity = "warning"
sees = "W"
# Parts per step: between 1 and 2, since an occasional skipped step joins two.
LEAST = 1.5
# Samples of a part with which BatchNorm is as good as with more (Wu & He 2018, figure 1).
ENOUGH = 32


def check(record: Record) -> Iterator[Match]:
    mixed = {finding.where for finding in mixed_domains.check(record)}
    steps = record.watched.steps
    changed = record.watched.inputs.median("changed") or 0.0
    perturbed = []
    for norm in record.of_kind("batch"):
        watched = record.watched.norms.get(norm.name)
        if watched is None or not watched.backwards or steps < 2 or norm.frozen or norm.name in mixed:
            continue
        # A model whose every input requires gradients is a part of the one that trains.
        guiding = watched.guiding / steps if watched.guiding < watched.parts else 0.0
        parts, updates = watched.parts / steps - guiding, watched.history.median("updates")
        if parts < LEAST or updates is None or updates < LEAST:
            continue
        if parts - changed < LEAST:
            perturbed.append(norm.name)
            continue
        if guiding:
            yield _two_readings(norm.name, parts, guiding, watched.samples)
            continue
        yield Match(
            norm.name,
            f"{parts:.3g} forwards, each with a backward, per optimizer step: it normalizes by "
            f"{watched.samples} samples at a time, and its running statistics move {updates:.3g} times per step",
            {"parts": parts, "updates": updates, "samples": watched.samples},
            Fix("gammabeta.adopt(model), then `with gammabeta.accumulate_statistics(model):` around a step's forwards"),
            severity="note" if watched.samples >= ENOUGH else None,
        )
    if perturbed:
        yield _note(perturbed, changed)


def _two_readings(name: str, parts: float, guiding: float, samples: int) -> Match:
    """Report a discriminator's norm: its forwards may be different batches, or parts of one."""
    return Match(
        name,
        f"{parts:.3g} forwards, each with a backward, per optimizer step, beside {guiding:.3g} on inputs with gradients"
        ", as a generator's: different batches, such as real and fake, of which its running statistics become a "
        f"mixture, or parts of one batch, of which it normalizes {samples} samples at a time",
        {"parts": parts, "guiding": guiding, "samples": samples},
        Fix(
            "for different batches, model(torch.cat([a, b])), or `with gammabeta.frozen_statistics(model):` around one "
            "of them; for parts of one batch, gammabeta.adopt(model), then "
            "`with gammabeta.accumulate_statistics(model):` around them"
        ),
        severity="note",
    )


def _note(names: list[str], changed: float) -> Match:
    """Report the norms whose running statistics move at other parameters than those of the step."""
    others = f" (and those of {len(names) - 1} more)" if len(names) > 1 else ""
    return Match(
        names[0],
        f"of the forwards of an optimizer step, {changed:.3g} ran with other parameters than the one before, and moved "
        f"the running statistics{others} too, which now also describe those parameters",
        {"changed": changed, "layers": names},
        Fix("`with gammabeta.frozen_statistics(model):` around the forwards with changed parameters"),
        severity="note",
    )


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train() -> None:
        for _ in range(8):
            for _ in range(4):
                model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    return Example(model, where=("1",), optimizer=optimizer, train=train)


def clean() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    adopt(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train() -> None:
        for _ in range(8):
            with accumulate_statistics(model):
                for _ in range(4):
                    model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    return Example(model, optimizer=optimizer, train=train)
