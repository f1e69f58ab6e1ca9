"""A BatchNorm that follows a layer and must not be folded into it.

What it does: In a model in evaluation, finds BatchNorms whose input is the output of a convolution or linear layer that
cannot be folded. Such a layer is called again, shares its weight, is parametrized, has hooks, or feeds other readers
too. It gives one note for all of them.

Why it matters: Tools that fold by order of registration or by a pattern of names fold there all the same, and the
outputs are silently wrong (pytorch#104593 and #197539: a convolution used twice; #180995: a grouped, transposed one).

Example: A convolution that is called on two inputs, with a BatchNorm behind the first.

Use instead: `gammabeta.fold`, which leaves such sites unfolded and says why. Where the reason can be removed, the fix
says how: a separate layer for each call, or a weight of its own.

Evidence: tests/diagnostics/rules/test_probed_rules.py: folded by torch.nn.utils.fusion, the flagged example's outputs
are off by more than a tenth of their size; folded by `gammabeta.fold` they stay the same.

Limits: It is a note: the model itself is right. The finding holds for the given inputs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Norm, Record, counted
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.introspection.neighbours import Neighbours, Refusal
from gammabeta.introspection.observe import Observation
from gammabeta.surgery.folding.sites import Sites

severity = "note"
sees = "D"


def check(record: Record) -> Iterator[Match]:
    if record.model is None or record.model.training:
        return
    observation: Observation = record.observed
    neighbours = Neighbours(dict(record.model.named_modules()), observation)
    sites = Sites(record.model, observation)
    unsafe: list[tuple[str, str, Refusal]] = []
    for norm in record.of_kind("batch"):
        calls = observation.calls_of(norm.name)
        if norm.training or not norm.has_statistics or len(calls) != 1 or not calls[0].inputs or not _is_finite(norm):
            continue
        found = neighbours.producer(calls[0].inputs[0], 1)
        if found is None:
            continue
        layer = found.call.module
        try:
            sites.place(norm.name)
        except Refusal as refusal:
            unsafe.append((norm.name, layer, refusal))
    if unsafe:
        name, layer, reason = unsafe[0]
        others = f" (and {counted(len(unsafe) - 1, 'more such BatchNorm')})" if len(unsafe) > 1 else ""
        message = f"it must not be folded into {layer}: {reason}{others}"
        evidence = {"layer": layer, "layers": [name for name, *_ in unsafe]}
        fix = Fix(f"gammabeta.fold leaves it unfolded{'; ' * bool(reason.way)}{reason.way}")
        yield Match(name, message, evidence, fix)


def _is_finite(norm: Norm) -> bool:
    """Whether its values are finite; otherwise other rules say what is wrong."""
    values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return all(bool(value.isfinite().all()) for value in values if value is not None)


class Twice(nn.Module):
    """One convolution on two inputs, with a norm behind the first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x)) + self.conv(x.flip(3))
        return y


def flagged() -> Example:
    model = Twice()
    return Example(model.eval(), where=("norm",), inputs=torch.randn(4, 3, 8, 8))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return Example(model.eval(), inputs=torch.randn(4, 3, 8, 8))
