"""A frozen BatchNorm whose running statistics keep moving.

What it does: In a model in which something else trains, finds BatchNorms in training mode that do not train. These are
norms whose γ and β require no gradient, and norms without γ and β if the weights around them require none. Given
inputs, finds only those whose running statistics a forward does move. It is an error if the weights before the norm are
frozen too, and a warning if they train. Given the optimizer, as a warning, also finds norms of which neither γ and β
nor the weights around them are in any optimizer. Given inputs, as a warning, also finds norms that the model's forward
runs with gradients off. While watching, as a warning, finds norms that no backward reaches and no step moves, but whose
statistics forwards move.

It is a note in a part that looks like a moving average of another part, such as a momentum encoder: it has the same
structure and similar weights, and the other part trains. While watching, such a part is known by parameters that change
although nothing trains them. It is not found then.

Why it matters: `requires_grad_(False)` does not affect buffers. In training mode the layer normalizes by the batch.
Every forward moves its running statistics towards the new data, away from what the frozen weights were trained with.
Evaluation then uses statistics of another distribution. `eval()` on the layers helps until the next `model.train()`,
which every training loop calls (pytorch#66073, Lightning#15062).

A linear probe has the same fault if its backbone runs under `no_grad` in training mode, or if only the optimizer leaves
the backbone out.

Example: A backbone with gradients off, a head that trains, the model in training mode.

Use instead: `gammabeta.freeze(model.backbone)`: the source of the statistics becomes `Running`, which survives
`train()`.

Evidence: tests/diagnostics/rules/test_frozen_norm_thaws.py: ten steps of the flagged example on data of mean 3 move the
running mean by a standard deviation; after the fix it stays the same bit for bit.

Limits: Statistics may be meant to adapt while γ and β stay (AdaBN, test-time adaptation): ignore the rule there.
"Before" goes by registration. GB604 covers models without any gradient. If several optimizers share a model, pass all
of them, in a list. A part that starts to train later is found until then, if ten steps have passed. A frozen copy of a
part that trains is a note until ten steps were watched. An average that is renewed too rarely to change twice until
then is found.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.fixes import freezing
from gammabeta.diagnostics.optimized import OptimizedAround
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.diagnostics.twins import Twins
from gammabeta.surgery.freeze import freeze

severity = "error"
sees = "SDOW"

# Steps after which a norm that nothing has moved does not train.
STEPS = 10
# Changes of γ and β that no training made, after which they are an average. Loading a checkpoint is one.
_REWRITES = 2


def check(record: Record) -> Iterator[Match]:
    model = record.model
    if model is None or not any(parameter.requires_grad for parameter in model.parameters()):
        return
    around, twins = OptimizedAround(record), Twins(record)
    for norm in record.of_kind("batch"):
        if not norm.tracks or _rewrites(record, norm) >= _REWRITES:
            continue
        fix = freezing(model, norm)
        what, sure = _why_not_trained(norm) if norm.training else ("", False)
        if not what and norm.training and around.is_left_out(norm):
            what, sure = "neither it nor the weights around it are in an optimizer", False
        probe = record.probe
        cut_off = not what and probe is not None and bool(probe.without_gradient.intersection(norm.names))
        if cut_off:
            what, sure = "the forward runs it with gradients off", False
        moved = probe.moved if probe is not None else None
        if what and (moved is None or moved.intersection(norm.names)):  # a forward may put it into evaluation itself
            message = (
                f"{what}, yet it is in training mode: every forward moves its running statistics {_share(norm)} of "
                "the way to the batch's"
            )
            evidence = {"momentum": norm.momentum, "batches": norm.batches}
            match = Match(norm.name, message, evidence, fix, severity=None if sure else "warning")
            twin = None if _is_watched(record, norm) else twins.of(norm, cut_off=cut_off)
            yield match if twin is None else _average(match, *twin)
        elif not what and record.watched is not None:
            yield from _watched(record, norm, fix)


def _why_not_trained(norm: Norm) -> tuple[str, bool]:
    """Return why the norm does not train, by what requires gradients, and whether the weights before it don't either.

    "" if it trains.
    """
    alone = norm.affine_trains is None
    if norm.affine_trains or (alone and norm.around_trains is not False):
        return "", False
    if alone:
        return "the weights around it require no gradient", True
    also = " and neither do the weights before it" if norm.before_trains is False else ""
    return f"γ and β require no gradient{also}", norm.before_trains is False


def _rewrites(record: Record, norm: Norm) -> int:
    watched = record.watched.norms.get(norm.name) if record.watched is not None else None
    return watched.rewrites if watched is not None else 0


def _is_watched(record: Record, norm: Norm) -> bool:
    """Return whether a moving average would have been seen to be one."""
    return record.watched is not None and record.watched.steps >= STEPS and norm.affine_trains is not None


def _average(match: Match, part: str, twin: str) -> Match:
    message = (
        f"{match.message}; if {part} is a moving average of {twin}, this is meant; otherwise freeze it: "
        f"gammabeta.freeze(model.get_submodule({part!r}))"
    )
    return replace(match, message=message, fix=None, severity="note")


def _watched(record: Record, norm: Norm, fix: Fix) -> Iterator[Match]:
    """Yield a norm that trained in no step so far, although its running statistics moved."""
    watched = record.watched.norms.get(norm.name)
    if watched is None or record.watched.steps < STEPS or watched.backwards or watched.stepped:
        return
    if watched.calls == 0 and watched.polluting:
        what = f"all {watched.polluting} forwards in training mode had gradients off"
    elif watched.calls and watched.backwards == 0:
        what = f"no backward reached it in {watched.calls} forwards in training mode"
    else:
        return
    message = f"{what}, and no step moved it: it does not train, but every forward moved its running statistics"
    evidence = {"calls": watched.calls, "without gradient": watched.polluting, "steps": record.watched.steps}
    yield Match(norm.name, message, evidence, fix, severity="warning")


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
