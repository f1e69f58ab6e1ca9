"""A norm through which samples see each other, in a model that must keep them apart.

What it does: Given `intent`, finds BatchNorms that normalize by the batch in training, SyncBatchNorm and those without
running statistics included. Given inputs too, the gradient across samples of the layer itself, on its own input, shows
how much. For "private" it also finds InstanceNorms with running statistics.

Why it matters: It depends on the intent. "contrastive": the statistics that positives share give the answer away, and
the loss falls without anything being learned (moco#46). "gradient-penalty": the penalty is on the gradient of each
sample's score with respect to that sample; with batch statistics there is no such gradient (Gulrajani 2017, section 4).
"private": one person's data enters everybody's gradient, which clipping sample by sample does not bound. Running
statistics are another way out: they hold the data's mean without noise. Opacus refuses such models.

Example: A critic with BatchNorm, trained with a gradient penalty.

Use instead: LayerNorm, GroupNorm or InstanceNorm, which look at one sample: `gammabeta.convert`. For "contrastive",
statistics over processes with shuffled samples work too.

Evidence: tests/diagnostics/rules/test_probed_rules.py: in the flagged example at least a twentieth of a sample's
gradient belongs to its companions, in the clean one nothing.

Limits: It runs only with `intent`: without one, samples that see each other are how BatchNorm works. Without inputs, a
norm that its model puts into evaluation itself is found too. A norm in evaluation mode inside a model in training mode
counts as frozen, and `train()` would thaw it. For "private" a model in evaluation mode is looked at as it would train.
"""

from collections.abc import Iterator

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.layers.group_norm import GroupNorm

severity = "error"
sees = "SD"

HARM = {
    "contrastive": "their statistics reveal which samples belong together",
    "gradient-penalty": "a sample's gradient is not its own",
    "private": "one sample enters every other's gradient, which clipping does not bound",
}
LEAST = 1e-6  # rounding in float32


def check(record: Record) -> Iterator[Match]:
    if record.intent not in HARM or record.model is None:
        return
    for norm in record.of_kind("batch"):
        seen = record.probe.companions.get(norm.name) if record.probe is not None else None
        if seen is not None and seen.training is not None:
            if seen.training < LEAST:
                continue
            shown, evidence = f"{seen.training:.0%} of a sample's gradient", {"companions": seen.training}
        elif _uses_batch(norm, record.model.training, record.intent):
            shown, evidence = "a part of a sample's gradient", {}
        else:
            continue
        message = (
            f"{shown} goes to the other samples of its batch in training, and the model is {record.intent}: "
            f"{HARM[record.intent]}"
        )
        fix = Fix(f'gammabeta.convert(model, to="group", where={norm.name!r}), before training')
        yield Match(norm.name, message, evidence, fix)
    if record.intent == "private":
        yield from _running_instances(record)


def _uses_batch(norm: Norm, model_trains: bool, intent: str) -> bool:
    """Whether the norm normalizes by the batch in training; of classes that are not torch's it cannot be said."""
    if norm.frozen or not isinstance(norm.module, nn.modules.batchnorm._BatchNorm):
        return False
    return norm.training or (intent == "private" and not model_trains)


def _running_instances(record: Record) -> Iterator[Match]:
    for norm in record.of_kind("instance"):
        if norm.tracks and norm.has_statistics:
            message = (
                "its running statistics hold the mean of the data without noise, and the model is private: they would "
                "be published with it"
            )
            yield Match(norm.name, message, {}, Fix("track_running_stats=False, before training"))


def flagged() -> Example:
    critic = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(288, 1))
    return Example(critic, where=("1",), inputs=torch.randn(8, 3, 8, 8), intent="gradient-penalty")


def clean() -> Example:
    critic = nn.Sequential(nn.Conv2d(3, 8, 3), GroupNorm(2, 8), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(288, 1))
    return Example(critic, inputs=torch.randn(8, 3, 8, 8), intent="gradient-penalty")
