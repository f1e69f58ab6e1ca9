"""Norms side by side on images: the user's network or the small ResNet, at the user's batch size and number of devices.

What d devices with b images each would learn is trained here on one device. BatchNorm of each device's own batch is
ghost BatchNorm of b images in a batch of b·d. Synced BatchNorm is BatchNorm of the whole batch (the claim
sync_equals_large_batch). Time and memory are those of b images on one device, without communication. The usual norm is
BatchNorm as each device computes it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gammabeta.lab.comparison import ERROR, Compared, Comparison, kept_bytes, side_by_side
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build, describe
from gammabeta.lab.images.training import chance
from gammabeta.lab.images.user_network import impossible_arms
from gammabeta.lab.interval import Precision
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import at_best, error_then_loss

BATCH = 32
LEAST_STEPS, MOST_STEPS = 150, 800


def norms(batch_size: int, devices: int, *, flat: bool) -> dict[str, str]:
    """Return the arms with the names that readers know them by; the usual one is first."""
    if devices > 1:
        found = {
            f"ghost:{batch_size}": "BatchNorm of each device's own batch",
            "batch": "BatchNorm synced over the devices",
        }
    else:
        found = {"batch": "BatchNorm", "renorm": "batch renormalization"}
    found |= {"group": "GroupNorm", "layer": "LayerNorm", "rms": "RMSNorm"}
    return found | ({} if flat else {"instance": "InstanceNorm"}) | {"none": "no normalization"}


@versioned(1)
def saved_bytes(*, task: Mapping[str, Any], network: Mapping[str, Any], norm: str, batch_size: int) -> dict[str, Any]:
    """Return the bytes that one forward pass on a batch keeps for the backward pass."""
    data = load(task)
    model = build(data, network, norm, 0).train()
    index = torch.arange(batch_size) % len(data.train)
    x_nchw, y_n = data.train.x_nchw[index], data.train.y_n[index]
    return {"bytes": kept_bytes(model, lambda: functional.cross_entropy(model(x_nchw), y_n))}


def is_flat(experiment: Experiment, network: Mapping[str, Any]) -> bool:
    """Whether some norm of the network has one value per channel and image, which InstanceNorm cannot normalize."""
    model = build(experiment.task, network, "batch", 0)
    return any(isinstance(module, nn.BatchNorm1d) for module in model.modules())


def compare(experiment: Experiment, batch_size: int | None, devices: int) -> list[Comparison]:
    """Train the network with every norm, each at its own best learning rate, and measure what it costs.

    Learning rates are tuned on the validation split, with exact statistics, with seeds of their own: one (quick) or
    three. Errors are those of the test split with moving averages, as a network is deployed; those with exact
    statistics stand beside them.
    """
    network = experiment.convolutional
    batch_size = batch_size or BATCH
    seeds = experiment.seeds(4, 10)
    whole = batch_size * devices
    images = 9_600 if experiment.quick else 25_600
    steps = min(max(images // whole, LEAST_STEPS), MOST_STEPS)
    impossible = impossible_arms(network, experiment.task)
    named = {
        norm: name
        for norm, name in norms(batch_size, devices, flat=is_flat(experiment, network)).items()
        if norm.partition(":")[0] not in impossible
    }
    arms = {norm: {"network": dict(network), "norm": norm, "batch_size": whole, "steps": steps} for norm in named}
    rates, found = at_best(
        experiment, arms, error_then_loss, seeds, tuning=experiment.tuning_seeds(1, 3), report="test"
    )
    plain = {norm: "batch" if norm.startswith("ghost") else norm for norm in named}
    # The costs of one device. A batch of one image is timed as two, which give every BatchNorm statistics.
    at = {"task": dict(experiment.source), "network": dict(network), "batch_size": max(batch_size, 2)}
    timed = experiment.grid_of_records(
        list(named),
        seeds[:3],
        lambda norm, seed: Trial("gammabeta.lab.images.training:step_time", {**at, "norm": plain[norm], "seed": seed}),
    )
    sizes = experiment.grid(
        list(named), [at], lambda norm, at: Trial(f"{__name__}:saved_bytes", {**at, "norm": plain[norm]})
    )
    compared = side_by_side(
        [
            Compared(
                norm,
                name,
                2.0 ** rates[norm],
                tuple(100 * result["moving_error"] for result in found[norm]),
                tuple(record["timing"]["seconds_per_step"] for record in timed[norm]),
                sizes[norm][0]["bytes"],
                tuple(100 * result["error"] for result in found[norm]),
            )
            for norm, name in named.items()
        ],
        ERROR,
        Precision(samples=len(experiment.task.test)),
    )
    by_chance = 100 * (1 - chance(experiment.task))
    return [
        Comparison(
            "images",
            experiment.task.name,
            describe(network),
            batch_size,
            devices,
            steps,
            ERROR,
            min(arm.value for arm in compared) <= 0.5 * by_chance,
            compared,
            own=experiment.user is not None,
            rates_by="exact statistics",
        )
    ]
