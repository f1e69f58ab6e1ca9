"""Norms side by side on images: the user's network or the small ResNet, at the user's batch size and number of devices.

What d devices with b images each would learn is trained here on one device. BatchNorm of each device's own batch is
ghost BatchNorm of b images in a batch of b·d. Synced BatchNorm is BatchNorm of the whole batch (the claim
sync_equals_large_batch). Time and memory are those of b images on one device; for synced BatchNorm the exchange of
statistics is added, modelled over ``--link`` (`gammabeta.lab.links`). The usual norm is BatchNorm as each device
computes it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gammabeta.lab.answers import precision_of
from gammabeta.lab.comparison import ERROR, WHOM, Compared, Comparison, kept_bytes, side_by_side
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build, describe
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.task import Task
from gammabeta.lab.images.training import chance
from gammabeta.lab.images.user_network import impossible_arms
from gammabeta.lab.length import Length, find
from gammabeta.lab.links import LINKS, communication, exchange, of_synced
from gammabeta.lab.procedure import COARSE_REPLICATES, choose_rates, headroom
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import Grid, at_best, deployed

BATCH, BATCH_AT_SCALE = 32, 128
# The least that a network is trained for, and the limits up to which the length is doubled, in epochs.
EPOCHS, LIMIT_QUICK, LIMIT_FULL = 20, 20, 80
COARSE = (-6, -4, -2)
# A quick study looks for the centre of the rates with runs of this share of the length, and leaves these norms out.
SHARE_QUICK = 0.25
LEFT_OUT = ("renorm", "rms", "instance")
LEFT_OUT_AT_SCALE = (*LEFT_OUT, "layer")


def norms(batch_size: int, devices: int, *, flat: bool, without: Collection[str] = ()) -> dict[str, str]:
    """Return the arms with the names that readers know them by; the usual one is first.

    Args:
        without: arms to leave out.
    """
    if devices > 1:
        found = {
            f"ghost:{batch_size}": "BatchNorm of each device's own batch",
            "batch": "BatchNorm synced over the devices",
        }
    else:
        found = {"batch": "BatchNorm", "renorm": "batch renormalization"}
    found |= {"group": "GroupNorm", "layer": "LayerNorm", "rms": "RMSNorm"}
    found |= ({} if flat else {"instance": "InstanceNorm"}) | {"none": "no normalization"}
    return {norm: name for norm, name in found.items() if norm not in without}


@versioned(2)
def saved_bytes(*, task: Mapping[str, Any], network: Mapping[str, Any], norm: str, batch_size: int) -> dict[str, Any]:
    """Return the bytes that one forward pass on a batch keeps for the backward pass.

    Returns:
        ``bytes``, and ``recomputed``: the same after `gammabeta.recompute`.
    """
    data = load(task)
    model = build(data, network, norm, 0).train()
    index = torch.arange(batch_size) % len(data.train)
    x_nchw, y_n = data.train.x_nchw[index], data.train.y_n[index]
    kept = kept_bytes(model, lambda: functional.cross_entropy(model(x_nchw), y_n))
    return {"bytes": kept.as_it_is, "recomputed": kept.with_recompute}


def is_synced(norm: str, devices: int) -> bool:
    """Whether a norm takes its statistics from all devices."""
    return devices > 1 and norm == "batch"


def is_flat(experiment: Experiment, network: Mapping[str, Any]) -> bool:
    """Whether some norm of the network has one value per channel and image, which InstanceNorm cannot normalize."""
    model = build(experiment.task, network, "batch", 0)
    return any(isinstance(module, nn.BatchNorm1d) for module in model.modules())


def steps_of(epochs: float, images: int, batch: int) -> int:
    """Return the number of steps in which a network sees as many images, whatever the size of its batches."""
    return max(1, round(epochs * images / batch))


def networks(experiment: Experiment) -> list[Mapping[str, Any]]:
    """Return the networks to compare norms in.

    It is the user's, or the small ResNet and, in a full study, two others. At scale it is ResNet-20 on CIFAR-10.
    """
    if experiment.at_scale and not experiment.user and experiment.source["data"].startswith("cifar10:"):
        return [{"kind": "resnet20", "init": "matched"}]
    others = [{"kind": kind, "init": "matched"} for kind in ("mobilenet", "vit")]
    return [experiment.convolutional, *([] if experiment.user or experiment.quick else others)]


def compare(experiment: Experiment, batch_size: int | None, devices: int) -> list[Comparison]:
    """Train each network with every norm, as people train, and measure what it costs.

    Every replicate is the whole procedure (`gammabeta.lab.procedure`): its own split, order and choice of the learning
    rate, by the validation error as deployed. All sizes of batches see as many images. Errors are those of the test
    split with moving averages; those with exact statistics stand beside them.
    """
    usual = BATCH_AT_SCALE if experiment.at_scale else BATCH
    return [_compared(experiment, network, batch_size or usual, devices) for network in networks(experiment)]


def _named(
    experiment: Experiment, network: Mapping[str, Any], batch_size: int, devices: int, without: Collection[str] = ()
) -> dict[str, str]:
    """Return the norms that the network can have; the usual one is first, which in a Transformer is LayerNorm."""
    impossible = impossible_arms(network, experiment.task)
    every = norms(batch_size, devices, flat=is_flat(experiment, network), without=without)
    if network["kind"] == "vit":
        every = {"layer": every["layer"], **every}
    return {norm: name for norm, name in every.items() if norm.partition(":")[0] not in impossible}


def _compared(experiment: Experiment, network: Mapping[str, Any], batch_size: int, devices: int) -> Comparison:
    """Compare the norms in one network."""
    task = experiment.task
    whole, images = batch_size * devices, len(task.train)
    without = LEFT_OUT_AT_SCALE if experiment.at_scale else LEFT_OUT if experiment.quick else ()
    named = _named(experiment, network, batch_size, devices, without)
    length = _length(experiment, network, list(named), whole)
    arms = {norm: _arm(network, norm, whole, length.steps) for norm in named}
    replicates = experiment.seeds(4, 10)
    shorter = {"steps": max(1, round(SHARE_QUICK * length.steps))} if experiment.quick else None
    found = choose_rates(experiment, arms, replicates, deployed, Grid(COARSE, ERROR.margin[1] / 100, shorter))
    costs = _costs(experiment, network, list(named), max(batch_size, 2), replicates[:3])
    synced = build(task, network, "batch", 0).train()
    messages = of_synced(synced, lambda: synced(task.train.x_nchw[:2])) if devices > 1 else []
    link = LINKS[experiment.link]
    exchanged = exchange(messages, devices, link) if messages else 0.0
    usual = next(iter(named))
    compared = side_by_side(
        [
            Compared(
                norm,
                name,
                found[norm].rate,
                tuple(100 * result["moving_error"] for result in found[norm].results),
                tuple(seconds + (exchanged if is_synced(norm, devices) else 0.0) for seconds in costs[norm].seconds),
                costs[norm].saved,
                tuple(100 * result["error"] for result in found[norm].results),
                recomputed=costs[norm].recomputed,
                headroom=headroom(found[norm].coarse, ERROR.margin[1] / 100),
                fragile=found[norm].usual_exponent + 1 in found[norm].lost,
            )
            for norm, name in named.items()
        ],
        ERROR,
        precisions={norm: _precisions(found[usual].results, found[norm].results, task) for norm in named},
        confidence=experiment.confidence,
    )
    by_chance = 100 * (1 - chance(task))
    return Comparison(
        "images",
        task.name,
        describe(network),
        batch_size,
        devices,
        length.steps,
        ERROR,
        min(arm.value for arm in compared) <= 0.5 * by_chance,
        compared,
        own=experiment.user is not None,
        trained=length.said(lambda steps: steps * whole / images),
        left_out=_left_out(experiment, network, batch_size, devices, named),
        whom=WHOM[task.keeps_test],
        communication=communication(messages, median(costs[usual].seconds), devices, link) if messages else "",
    )


def _left_out(
    experiment: Experiment, network: Mapping[str, Any], batch_size: int, devices: int, named: Mapping[str, str]
) -> tuple[str, ...]:
    """Name the norms that a whole study compares too."""
    every = _named(experiment, network, batch_size, devices)
    return tuple(name for norm, name in every.items() if norm not in named)


def _arm(network: Mapping[str, Any], norm: str, batch: int, steps: int) -> dict[str, Any]:
    changed = {"augment": True} if network["kind"] == "resnet20" else {}
    return {"network": dict(network), "norm": norm, "batch_size": batch, "steps": steps, **RECIPE, **changed}


def _length(experiment: Experiment, network: Mapping[str, Any], named: Sequence[str], whole: int) -> Length[str]:
    """Double the length of training while the differences between norms move by more than the margin.

    Errors are of the validation split, with moving averages, on the replicates of the coarse search and at its best
    rates.
    """
    images = len(experiment.task.train)
    replicates = experiment.coarse_replicates(COARSE_REPLICATES)

    def values(steps: int) -> dict[str, list[float]]:
        arms = {norm: _arm(network, norm, whole, steps) for norm in named}
        _, results = at_best(experiment, arms, deployed, replicates, coarse=COARSE, tuning=replicates)
        return {norm: [100 * result["moving_error"] for result in of_norm] for norm, of_norm in results.items()}

    start, limit = (
        steps_of(epochs, images, whole) for epochs in (EPOCHS, LIMIT_QUICK if experiment.quick else LIMIT_FULL)
    )
    return find(values, next(iter(named)), start, limit, ERROR.margin[1])


def _precisions(usual: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]], task: Task) -> tuple[Any, Any]:
    """Return the precision of a norm's gain over the usual one, and of what recalibration gains it."""
    of = {"samples": len(task.test), "trained_on": len(task.train)}
    return (
        precision_of(usual, own, **of, wrong=("moving_wrong", "moving_wrong")),
        precision_of(own, own, **of, wrong=("moving_wrong", "wrong")),
    )


@dataclass(frozen=True)
class Costs:
    """What a step of one device costs: seconds, one per replicate, and bytes kept for the backward pass.

    Attributes:
        recomputed: the bytes after `gammabeta.recompute`.
    """

    seconds: tuple[float, ...]
    saved: int
    recomputed: int


def _costs(
    experiment: Experiment, network: Mapping[str, Any], named: Sequence[str], batch_size: int, replicates: Sequence[int]
) -> dict[str, Costs]:
    """Measure each norm on one device. A batch of one image is timed as two, which give every BatchNorm statistics."""
    plain = {norm: "batch" if norm.startswith("ghost") else norm for norm in named}
    at = {
        "task": dict(experiment.source),
        "network": dict(network),
        "batch_size": batch_size,
    }
    timed = experiment.grid_of_records(
        list(named),
        replicates,
        lambda norm, seed: Trial("gammabeta.lab.images.training:step_time", {**at, "norm": plain[norm], "seed": seed}),
    )
    sizes = experiment.grid(
        list(named), [at], lambda norm, at: Trial(f"{__name__}:saved_bytes", {**at, "norm": plain[norm]})
    )
    return {
        norm: Costs(
            tuple(record["timing"]["seconds_per_step"] for record in timed[norm]),
            int(sizes[norm][0]["bytes"]),
            int(sizes[norm][0]["recomputed"]),
        )
        for norm in named
    }
