"""Running statistics that do not match the data: evaluation uses another network than training.

What it does: Compares what each BatchNorm is given in evaluation, on the inputs, with its running statistics. It names
the first layer, in the order of the data, where they differ by more than sampling error can explain and by enough to
matter: half a standard deviation, or a factor of two in the variance, root mean square over the channels. ε is added to
each variance, as in the output. A second forward, in which the layers normalize by the batch as in training, tells the
layers whose own statistics are wrong from those that only follow: these are given other inputs in evaluation, and match
what training gives them. Both are counted. Nothing is found if all match what training gives them.

The share of the initial 0 and 1 that n batches with momentum m leave, (1 − m)ⁿ, is known. What it explains is no
finding in a training that has just begun; for a momentum below 0.01 it is a note. In evaluation it is a note if the
optimizer is given, which tells that training goes on, and the momentum is at least 0.01; otherwise it is a warning.

Why it matters: The network that is evaluated is not the one that was trained. Causes are a momentum too small for the
number of steps, data that has shifted, other preprocessing in evaluation, or statistics of another model.

Example: A BatchNorm whose running statistics stayed at 0 and 1, while its input has mean 3.

Use instead: Population statistics: `recalibrate` on data as in training, for all layers whose statistics are wrong; or
the preprocessing of training.

Evidence: tests/diagnostics/rules/test_flow_rules.py: the flagged example's outputs in training and evaluation differ by
more than their own spread, and after the fix by a tenth of it. Twenty layers with a momentum too small are mended by
one fix, where the first alone leaves nineteen.

Limits: The inputs have to be like those of training. Sampling error comes from the effective number of values, which a
single sample does not give: then nothing is reported. Frozen layers use the same statistics in training, so they have
no such gap; neither have those of which nothing trains while other parts do. Where nothing at all trains, a person has
to say whether the statistics may change.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.as_training import measure_as_training
from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.fixes import is_still, recalibration
from gammabeta.diagnostics.gap import RATIO, SHIFT, Gap, gap_of
from gammabeta.diagnostics.initial_share import explained_by_initial, initial_share
from gammabeta.diagnostics.measurement import Given
from gammabeta.diagnostics.optimized import OptimizedAround
from gammabeta.diagnostics.record import Norm, Record, counted
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.introspection.observe import Observation

severity = "warning"
sees = "D"

# From this momentum on, 300 batches leave less than 5 % of the initial values: that needs no note.
_USUAL = 0.01
# A layer is recalibrated with the others from this share of a gap that matters, so that none is left at the limit.
_SHARE = 0.5


def check(record: Record) -> Iterator[Match]:
    model, observation = record.model, record.observed
    assert model is not None
    trains = any(parameter.requires_grad for parameter in model.parameters())
    norms = dict(_in_order(record, observation, trains))
    gaps = _gaps(norms, record.given or {})
    mattering = [name for name, gap in gaps.items() if gap.matters]
    if not mattering:
        return
    layers: dict[str, Any] = {name: norm.module for name, norm in norms.items()}
    as_training = measure_as_training(model, record.inputs, layers, record.forward)
    own = _gaps(norms, as_training)
    # Without a forward as in training, nothing tells who follows.
    wrong = [name for name in norms if name in own and _is_wrong(own[name])] if own else mattering
    young = [name for name in wrong if _is_young(norms[name], record, as_training.get(name, ()))]
    late = [name for name in young if own[name].matters and _is_late(norms[name])] if own else []
    wrong = [name for name in wrong if name not in young]
    if late:
        yield _of_youth([norms[name] for name in late], record)
    if not any(name in mattering for name in wrong):  # evaluation gives other inputs, or the training has just begun
        return
    follow = [name for name in mattering if name not in wrong and name not in young]
    first = next(name for name in wrong if name in mattering)
    gap = gaps[first]
    message = f"its running statistics do not match the inputs: {gap}{_others(len(wrong) - 1, len(follow))}"
    evidence = {
        "mean_shift": gap.mean_shift, "log_variance_ratio": gap.log_variance_ratio, "layers": wrong, "follow": follow,
    }  # fmt: skip
    fix = recalibration(record, [norms[name] for name in wrong])
    if not trains:
        fix = Fix(f"if its statistics may change, {fix.what.partition('; given')[0]}")
    yield Match(first, message, evidence, fix)


def _is_young(norm: Norm, record: Record, calls: Sequence[Given]) -> bool:
    """Return whether what is left of 0 and 1 explains the running statistics, in a training that is under way."""
    # An optimizer tells that an evaluation comes between steps, after which a usual momentum forgets 0 and 1.
    passing = bool(record.optimizers) and (norm.momentum or 0.0) >= _USUAL
    if not (norm.training or passing) or not explained_by_initial(norm, calls):
        return False
    # What no optimizer has is to be frozen, and then stays as it is.
    return not (record.optimizers and OptimizedAround(record).is_left_out(norm))


def _is_late(norm: Norm) -> bool:
    """Return whether it matters already that statistics are young: in evaluation, or where they stay so for long."""
    return not norm.training or (norm.momentum or 1.0) < _USUAL


def _of_youth(norms: Sequence[Norm], record: Record) -> Match:
    """Return the note on norms in whose statistics 0 and 1 still are."""
    first, left = norms[0], initial_share(norms[0])
    others = f"; so are those of {counted(len(norms) - 1, 'other layer')}" if len(norms) > 1 else ""
    message = (
        f"after {counted(first.batches or 0, 'batch', 'batches')} with momentum {first.momentum:g}, {left:.0%} of its "
        f"running statistics are still the initial 0 and 1{others}: recalibrate before an evaluation"
    )
    return Match(first.name, message, {"left": left}, recalibration(record, norms), severity="note")


def _in_order(record: Record, observation: Observation, trains: bool) -> Iterator[tuple[str, Norm]]:
    """Yield the BatchNorms that may have a gap, in the order of the data."""
    order = {call.module: call.index for call in reversed(observation.calls)}
    for norm in sorted(record.of_kind("batch"), key=lambda norm: order.get(norm.name, 0)):
        frozen = norm.frozen or (trains and is_still(norm))
        if norm.name in order and norm.has_statistics and not norm.has_initial_statistics and not frozen:
            yield norm.name, norm


def _gaps(norms: Mapping[str, Norm], given: Mapping[str, Any]) -> dict[str, Gap]:
    """Return the gaps of the norms that are called once, from measurements of their inputs."""
    found = {}
    for name, norm in norms.items():
        calls = given.get(name, ())
        if len(calls) == 1:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            gap = gap_of(calls[0], norm.running_mean, norm.running_var, norm.eps or 0.0)
            if gap is not None:
                found[name] = gap
    return found


def _is_wrong(gap: Gap) -> bool:
    return gap.significant and (gap.mean_shift > _SHARE * SHIFT or gap.log_variance_ratio > _SHARE * RATIO)


def _others(wrong: int, follow: int) -> str:
    """Say how many further layers have wrong statistics, and how many only have other inputs than in training."""
    text = f"; nor do those of {wrong} other layer{'' if wrong == 1 else 's'}" if wrong else ""
    if follow:
        text += f"; {follow} further layer{' is' if follow == 1 else 's are'} only given other inputs than in training"
    return text


def flagged() -> Example:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model[1].running_mean.fill_(-1.5)  # type: ignore[operator]
    inputs = torch.randn(16, 3, 8, 8)
    return Example(model.eval(), where=("1",), inputs=inputs, loader=[inputs])


def clean() -> Example:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    for _ in range(8):
        model(torch.randn(16, 3, 8, 8))
    return Example(model.eval(), inputs=torch.randn(16, 3, 8, 8))
