"""A frozen BatchNorm whose running statistics keep moving.

What it does: In a model in which something else trains, finds BatchNorms in training mode whose γ and β require no
gradient. BatchNorms without γ and β are found if the weights around them require none. Given inputs, finds only those
whose running statistics a forward does move. It is an error if the weights before the norm are frozen too, and a
warning if they train.

Why it matters: `requires_grad_(False)` does not affect buffers. In training mode the layer normalizes by the batch.
Every forward moves its running statistics towards the new data, away from what the frozen weights were trained with.
Evaluation then uses statistics of another distribution. `eval()` on the layers helps until the next `model.train()`,
which every training loop calls (pytorch#66073, Lightning#15062).

Example: A backbone with gradients off, a head that trains, the model in training mode.

Use instead: `gammabeta.freeze(model.backbone)`: the source of the statistics becomes `Running`, which survives
`train()`.

Evidence: tests/diagnostics/rules/test_frozen_norm_thaws.py: ten steps of the flagged example on data of mean 3 move the
running mean by a standard deviation; after the fix it stays the same bit for bit.

Limits: Statistics may be meant to adapt while γ and β stay (AdaBN, test-time adaptation): ignore the rule there.
"Before" goes by registration. GB604 covers models without any gradient.
"""

from collections.abc import Iterator
from functools import partial

from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.surgery.freeze import freeze

severity = "error"
sees = "SD"


def check(record: Record) -> Iterator[Match]:
    model = record.model
    if model is None or not any(parameter.requires_grad for parameter in model.parameters()):
        return
    for norm in record.of_kind("batch"):
        if not (norm.tracks and norm.training):
            continue
        alone = norm.affine_trains is None
        if norm.affine_trains or (alone and norm.around_trains is not False):
            continue
        moved = record.probe.moved if record.probe is not None else None
        if moved is not None and not moved.intersection(norm.names):
            continue  # for example a forward that puts the norm into evaluation itself
        frozen_before = alone or norm.before_trains is False
        what = "the weights around it require no gradient" if alone else "γ and β require no gradient"
        also = "" if alone else " and neither do the weights before it" if frozen_before else ""
        yield Match(
            norm.name,
            f"{what}{also}, yet it is in training mode: every forward moves its running statistics "
            f"{_share(norm)} of the way to the batch's",
            {"momentum": norm.momentum, "batches": norm.batches},
            Fix(f"gammabeta.freeze(model, where={norm.name!r})", partial(freeze, model, where=[*norm.names])),
            severity=None if frozen_before else "warning",
        )


def _share(norm: Norm) -> str:
    return "1/n" if norm.momentum is None else f"{norm.momentum:g}"


def flagged() -> Example:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    backbone.requires_grad_(False)
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 6 * 6, 10))
    model = nn.Sequential(backbone, head)
    model.train()
    return Example(model, where=("0.1",))


def clean() -> Example:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    backbone.requires_grad_(False)
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 6 * 6, 10))
    model = nn.Sequential(backbone, head)
    freeze(backbone)
    model.train()
    return Example(model)
