"""A norm of each channel that undoes the scale and shift of the norm before it.

What it does: Finds BatchNorms and InstanceNorms whose input is the output of another norm of channels (BatchNorm,
InstanceNorm or GroupNorm), with at most views between them, where nothing else reads that output.

Why it matters: The second norm subtracts each channel's mean and divides by its deviation. So in training the first
norm's β has no effect, and its γ none but its sign: both train for nothing. The first norm costs time and memory. This
comes from blocks that end with a norm followed by blocks that begin with one. A first norm without γ and β is undone as
a whole, but for two pairs: a BatchNorm behind an InstanceNorm has nothing left to normalize, and behind a GroupNorm
both count.

Example: A BatchNorm behind a BatchNorm.

Use instead: One of the two.

Evidence: tests/diagnostics/rules/test_norm_after_norm.py: in training, another γ > 0 and another β in the first norm
leave the output the same, for each pair of kinds that is found; without γ and β, leaving out the norm that the message
names does. For LayerNorm, RMSNorm and GroupNorm behind a norm the output moves by more than a tenth of its size.

Limits: Only norms of torch's and gammabeta's forward are looked at, each called once. LayerNorm, RMSNorm and GroupNorm
behind a norm are not found: they take one deviation over several channels, whose γ and β therefore count. A first norm
whose output is also the start of a residual stream, as in CLIP and Swin, is read by others and counts as well.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.fixes import at_each
from gammabeta.diagnostics.flow import calls_of, own_forward
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.introspection.neighbours import Neighbours, Refusal
from gammabeta.introspection.observe import Observation

severity = "warning"
sees = "D"

# Norms with statistics of each channel, which undo a scale and a shift of each channel.
UNDO = ("batch", "instance")
# Norms with γ and β of each channel on axis 1.
UNDONE = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


def check(record: Record) -> Iterator[Match]:
    assert record.model is not None
    observation: Observation = record.observed
    neighbours = Neighbours(dict(record.model.named_modules()), observation)
    by_name = {known: norm for norm in record.norms for known in norm.names}
    for norm, call, x in calls_of(record, *UNDO):
        if norm.frozen or _is_fixed(norm) or _changes_more(norm.module) or len(observation.calls_of(call.module)) != 1:
            continue
        found = neighbours.producer(x, 1, UNDONE) if len(x.shape) > 1 else None
        if found is None or found.axis != 1 or found.call.module not in by_name:
            continue
        first = by_name[found.call.module]
        if first.frozen or _is_fixed(first) or _changes_more(first.module):
            continue
        try:
            neighbours.only_call(found.call.module, "it")
            neighbours.check_alone(found, call)
        except Refusal:
            continue
        told = _told(first, norm)
        if told is not None:
            message = f"nothing else reads the output of {first.name}, and in training {told[0]}"
            yield Match(norm.name, message, {"first": first.name}, at_each(*told[1:], norm.name))


def _told(first: Norm, second: Norm) -> tuple[str, str, str] | None:
    """Return what the second norm undoes, what to do, and the same about several; None where both count."""
    one = "remove one of the two, model.set_submodule({name}, nn.Identity()), then train"
    several = "remove one of each two by model.set_submodule(name, nn.Identity()), then train"
    if first.weight is not None or first.bias is not None:
        what = "this norm undoes that one's scale and shift of each channel"
        if (first.kind, second.kind) == ("group", "batch"):
            built = f"build {first.name} with affine=False, or"
            return what, f"{built} {one}", f"{built} {several}"
        return what, one, several
    if (first.kind, second.kind) == ("group", "batch"):
        return None  # the first scales each sample by one deviation of several channels, which the batch's keep
    if (first.kind, second.kind) == ("instance", "batch"):
        what = "each channel that this norm gets has mean 0 and variance 1 already, in every sample"
        one = "give that one γ and β (affine=True) in place of this norm, then train"
        return what, one, one
    one = f"remove {first.name}, model.set_submodule({first.name!r}, nn.Identity()), then train"
    return "this norm undoes that one, which has no γ and β", one, one


def _is_fixed(norm: Norm) -> bool:
    """Whether the norm is not trained: in evaluation, with γ and β that require no gradient."""
    return not norm.training and norm.affine_trains is False


def _changes_more(module: Any) -> bool:
    """Whether the module does more than to normalize, scale and shift, such as an activation."""
    return own_forward(module) or getattr(module, "activation", None) is not None


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model, where=("2",), inputs=torch.randn(4, 3, 8, 8))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model, inputs=torch.randn(4, 3, 8, 8))
