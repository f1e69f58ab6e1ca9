"""A norm through which samples see each other, in a model that must keep them apart.

What it does: Given `intent`, finds BatchNorms whose output for one sample depends on the others in training. The
gradient across samples of the layer itself, on its own input, shows it.

Why it matters: It depends on the intent. "contrastive": the statistics that positives share give the answer away, and
the loss falls without anything being learned (moco#46). "gradient-penalty": the penalty is on the gradient of each
sample's score with respect to that sample; with batch statistics there is no such gradient (Gulrajani 2017, section 4).
"private": one person's data enters everybody's gradient, which clipping sample by sample does not bound; Opacus refuses
such a model.

Example: A critic with BatchNorm, trained with a gradient penalty.

Use instead: LayerNorm, GroupNorm or InstanceNorm, which look at one sample: `gammabeta.convert`. For "contrastive",
statistics over processes with shuffled samples work too.

Evidence: tests/diagnostics/rules/test_probed_rules.py: in the flagged example at least a twentieth of a sample's
gradient belongs to its companions, in the clean one nothing.

Limits: It runs only with `intent`: without one, samples that see each other are how BatchNorm works.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.layers.group_norm import GroupNorm

severity = "error"
sees = "D"

HARM = {
    "contrastive": "their statistics reveal which samples belong together",
    "gradient-penalty": "a sample's gradient is not its own",
    "private": "one sample enters every other's gradient, which clipping does not bound",
}
LEAST = 1e-6  # rounding in float32


def check(record: Record) -> Iterator[Match]:
    if record.intent is None or record.probe is None:
        return
    for norm in record.of_kind("batch"):
        seen = record.probe.companions.get(norm.name)
        if seen is None or seen.training is None or seen.training < LEAST:
            continue
        message = (
            f"{seen.training:.0%} of a sample's gradient goes to the other samples of its batch in training, and the "
            f"model is {record.intent}: {HARM[record.intent]}"
        )
        fix = Fix(f'gammabeta.convert(model, to="group", where={norm.name!r}), before training')
        yield Match(norm.name, message, {"companions": seen.training}, fix)


def flagged() -> Example:
    critic = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(288, 1))
    return Example(critic, where=("1",), inputs=torch.randn(8, 3, 8, 8), intent="gradient-penalty")


def clean() -> Example:
    critic = nn.Sequential(nn.Conv2d(3, 8, 3), GroupNorm(2, 8), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(288, 1))
    return Example(critic, inputs=torch.randn(8, 3, 8, 8), intent="gradient-penalty")
