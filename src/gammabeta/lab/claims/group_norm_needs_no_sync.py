"""GroupNorm needs no synchronization, and is slightly worse than large-batch BatchNorm.

Question: What does a norm that takes its statistics from one sample save between processes, and what does it cost in
accuracy?

Claim: GroupNorm is independent of the batch and needs no communication; its accuracy is slightly below that of
BatchNorm with a large batch.

Criterion: First an identity. In a forward and backward pass of each network in two processes, GroupNorm makes no
collective. In training all companions of a sample are exchanged at equal batch size. Its output and the gradient of its
input then change by at most 10⁻⁶ of the largest value. (The change is exactly 0 except with kernels whose rounding
depends on the place in the batch.) Then the accuracy: GroupNorm's test error minus BatchNorm's at batches of 32, in
percentage points; each network is a regime. "Slightly below" is 0 to 2 points. Supported if the identity holds and the
whole interval lies between 0 and 2. Contradicted if the identity fails, or the whole interval lies below 0 (GroupNorm
is better) or above 2 (it is much worse).

Room: Two controls. Synchronized BatchNorm in the same networks and processes makes collectives, and depends on its
companions by more than 10⁻³. So the count and the comparison can detect both. Both norms also train: their mean
validation errors are below half of that of chance.

Method: Real gloo processes with one batch each. Collectives are counted as torch dispatches them, only in forward and
backward of the loss; averaging the gradients, which every norm needs alike, is counted separately. Accuracy: one
process with the whole batch of 32, which is what synchronized processes compute (sync_equals_large_batch). The recipe:
SGD with momentum 0.9, 5 % warm-up, half a cosine to 0, decay 5e-4 on weights; 20 epochs. Every replicate draws its own
split and chooses each arm's learning rate on its own validation split. Errors are those as deployed, with moving
averages.

Settings: 2 processes of 16 images; MLP of 2 layers and the small ResNet (or the user's model). Quick: the MLP (or the
user's model) for the accuracy, both for the identity, 6 replicates. Full: both for both, 32 replicates.

Sources: Wu & He 2018, table 1 (arXiv 1803.08494); Peng et al. 2018, MegDet (1711.07240)

Known: Wu & He, ImageNet, batches of 32: BatchNorm 23.6 %, GroupNorm 24.1 % error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

import gammabeta as gb
from gammabeta.distributed import processes
from gammabeta.distributed.traffic import Traffic
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build, describe
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.training import average_gradients, chance
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table
from gammabeta.lab.paired import paired_errors
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import deployed
from gammabeta.lab.verdict import over_regimes, weakest
from gammabeta.statistics import Synced

EXACT = False
KIND = "images"

PROCESSES, BATCH = 2, 16
WHOLE = PROCESSES * BATCH
EPOCHS = 20
SLIGHTLY = (0.0, 2.0)
COARSE = (-5, -3)
SAME, DIFFERENT = 1e-6, 1e-3
CONTROL, JUDGED = "batch", "group"
SYNCED = (CONTROL,)  # which arms synchronize
CRITERION = Criterion(unit="percentage points", margin=SLIGHTLY, direction="within")
Cell = tuple[int, str]  # index of the network, norm


# --- the trials ---


def own_traffic(
    *, task: Mapping[str, str], networks: Sequence[Mapping[str, Any]], norms: Sequence[str], synced: Sequence[str]
) -> list[Any]:
    """Count this process's collectives.

    Returns:
        A list of (network, norm, collectives of the pass, their bytes, collectives that average gradients).
    """
    data, found = load(task), []
    start = BATCH * dist.get_rank()
    x_nchw, y_n = data.train.x_nchw[start : start + BATCH], data.train.y_n[start : start + BATCH]
    for index, network in enumerate(networks):
        for norm in norms:
            model = build(data, network, norm, 0).train()
            if norm in synced:
                gb.set_statistics(model, Synced())
            with Traffic() as of_pass:
                functional.cross_entropy(model(x_nchw), y_n).backward()
            with Traffic() as of_gradients:
                average_gradients(model)
            found.append([index, norm, len(of_pass.seen), of_pass.bytes, len(of_gradients.seen)])
    return found


@versioned(1)
def traffic(
    *, task: Mapping[str, str], networks: Sequence[Mapping[str, Any]], norms: Sequence[str], synced: Sequence[str]
) -> dict[str, Any]:
    """Count the collectives of a forward and a backward pass; each process counts its own."""
    settings = {
        "task": dict(task), "networks": [dict(one) for one in networks], "norms": list(norms), "synced": list(synced)
    }  # fmt: skip
    of_rank = processes.run(f"{__name__}:own_traffic", settings, PROCESSES)
    return {"rows": [max(rows) for rows in zip(*of_rank, strict=True)]}


@versioned(1)
def companions(*, task: Mapping[str, str], network: Mapping[str, Any], norm: str) -> dict[str, Any]:
    """Exchange a sample's companions; return the change of its output and its input's gradient, over the largest."""
    data = load(task)
    first, second = data.train.x_nchw[:BATCH], data.train.x_nchw[BATCH : 2 * BATCH].clone()
    second[0] = first[0]

    def own(x_nchw: Tensor) -> tuple[Tensor, Tensor]:
        x = x_nchw.double().requires_grad_()
        torch.manual_seed(0)  # for dropout, if the user's model has any
        y = build(data, network, norm, 0).double().train()(x)
        functional.cross_entropy(y[:1], data.train.y_n[:1]).backward()
        assert x.grad is not None
        return y[0].detach(), x.grad[0]

    moved = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(own(first), own(second), strict=True)]
    return {"output": moved[0], "gradient": moved[1]}


# --- the claim ---


@dataclass(frozen=True)
class Independence:
    """What each norm communicates, and how much it depends on companions.

    Attributes:
        networks: by name, in the order of the cells' indices.
        counts: (collectives, bytes per process, collectives that average gradients) of each cell.
        moved: the largest relative change when companions are exchanged, of each cell.
    """

    networks: Sequence[str]
    counts: Mapping[Cell, tuple[int, int, int]]
    moved: Mapping[Cell, float]

    @property
    def checks(self) -> int:
        return 2 * len(self.networks)

    @property
    def wrong(self) -> int:
        """The number of checks that GroupNorm fails."""
        judged = [(index, JUDGED) for index in range(len(self.networks))]
        return sum((self.counts[cell][0] > 0) + (self.moved[cell] > SAME) for cell in judged)


@dataclass(frozen=True)
class Accuracy:
    """The arms of the comparison of errors, each named "network norm", at the rates that replicates chose."""

    networks: Sequence[str]
    arms: Mapping[str, Mapping[str, Any]]
    chosen: Mapping[str, Chosen]

    def errors(self, network: str, norm: str) -> list[float]:
        """Return the test errors in percent, one per replicate."""
        return [100 * result["moving_error"] for result in self.chosen[f"{network} {norm}"].results]

    @property
    def worst(self) -> float:
        """The largest mean validation error of any arm."""
        return max(
            mean(float(result["validation"]["moving_error"]) for result in of_arm.results)
            for of_arm in self.chosen.values()
        )


def measure(experiment: Experiment) -> Outcome:
    """Check that GroupNorm is independent of processes and companions, and compare its accuracy with BatchNorm's."""
    if not processes.available():
        return Outcome(
            "no room here",
            "this build of torch has no gloo, which the processes need to communicate",
            [],
            Room(False, "torch has no gloo"),
        )
    seeds = experiment.seeds(6, 32)
    independence = _independence(experiment)
    accuracy = _accuracy(experiment, seeds)
    identity = Effect.exactly(
        "GroupNorm's passes that communicate or depend on companions", independence.wrong, independence.checks, "checks"
    )
    each = [
        CRITERION.effect(
            name,
            *paired_errors(
                experiment,
                accuracy.chosen[f"{name} {JUDGED}"].results,
                accuracy.chosen[f"{name} {CONTROL}"].results,
                "moving_error",
            ),
        )
        for name in accuracy.networks
    ]
    regimes = {effect.name: effect.verdict for effect in each}
    room = _room(experiment, independence, accuracy)
    return Outcome(
        verdict=weakest([identity.verdict, over_regimes(list(regimes.values()))]) if room.holds else "no room here",
        sentence=_sentence(each, independence, accuracy),
        effects=[*each, identity],
        room=room,
        pictures=[_errors(accuracy), _traffic(independence)],
        tables=[_table(independence), _rates(accuracy)],
        settings=f"{len(seeds)} replicates, {PROCESSES} processes",
        regimes=regimes,
        trials=experiment.trials,
    )


def _independence(experiment: Experiment) -> Independence:
    networks = [dict(experiment.mlp(2)), dict(experiment.convolutional)]
    cells = [(index, norm) for index in range(len(networks)) for norm in (CONTROL, JUDGED)]
    task = dict(experiment.source)
    counting = {"task": task, "networks": networks, "norms": [CONTROL, JUDGED], "synced": list(SYNCED)}
    counted, *results = experiment.run(
        [
            Trial(f"{__name__}:traffic", counting),
            *(
                Trial(f"{__name__}:companions", {"task": task, "network": networks[index], "norm": norm})
                for index, norm in cells
            ),
        ]
    )
    counts = {
        (index, norm): (collectives, sent, averaging) for index, norm, collectives, sent, averaging in counted["rows"]
    }
    moved = {
        cell: max(_number(value) for value in result.values()) for cell, result in zip(cells, results, strict=True)
    }
    return Independence([describe(network) for network in networks], counts, moved)


def _number(value: float | None) -> float:
    return float("inf") if value is None else value


def _accuracy(experiment: Experiment, seeds: Sequence[int]) -> Accuracy:
    mlp, conv = experiment.mlp(2), experiment.convolutional
    networks = [mlp, conv]
    if experiment.quick:
        networks = [conv if experiment.user else mlp]
    steps = EPOCHS * (len(experiment.task.train) // WHOLE)
    arms = {
        f"{describe(network)} {norm}": {
            "network": dict(network), "norm": norm, "batch_size": WHOLE, "steps": steps, **RECIPE,
        }
        for network in networks
        for norm in (CONTROL, JUDGED)
    }  # fmt: skip
    chosen = choose_rates(experiment, arms, seeds, deployed, COARSE)
    return Accuracy([describe(network) for network in networks], arms, chosen)


def _room(experiment: Experiment, independence: Independence, accuracy: Accuracy) -> Room:
    allowed = 0.5 * (1 - chance(experiment.task))
    controls = [(index, CONTROL) for index in range(len(independence.networks))]
    fewest = min(independence.counts[cell][0] for cell in controls)
    least = min(independence.moved[cell] for cell in controls)
    return Room(
        fewest > 0 and least > DIFFERENT and accuracy.worst < allowed,
        f"synchronized BatchNorm makes {fewest} collectives or more and depends on companions by {least:.2g} or "
        f"more; largest mean validation error {accuracy.worst:.3f}, below {allowed:.2f}",
    )


def _sentence(each: Sequence[Effect], independence: Independence, accuracy: Accuracy) -> str:
    sent = ", ".join(
        f"{name} {independence.counts[index, CONTROL][0]} with {independence.counts[index, CONTROL][1]} bytes"
        for index, name in enumerate(independence.networks)
    )
    communicates = (
        f"GroupNorm communicates or depends on companions in {independence.wrong} of {independence.checks} checks"
        if independence.wrong
        else f"GroupNorm makes no collective and depends on no companion (synchronized BatchNorm per step: {sent})"
    )
    costly = "; ".join(
        f"{e.value:+.1f} points [{e.low:.1f}, {e.high:.1f}] in {e.name} ({e.verdict}; "
        f"{mean(accuracy.errors(e.name, JUDGED)):.1f} against {mean(accuracy.errors(e.name, CONTROL)):.1f} %)"
        for e in each
    )
    return f"{communicates}; its test error at batches of {WHOLE} differs from BatchNorm's by {costly}"


def _errors(accuracy: Accuracy) -> Picture:
    series = []
    for norm in (CONTROL, JUDGED):
        errors = [accuracy.errors(name, norm) for name in accuracy.networks]
        series.append(
            Series(
                NORMS[norm],
                accuracy.networks,
                [mean(of_network) for of_network in errors],
                [min(of_network) for of_network in errors],
                [max(of_network) for of_network in errors],
            )
        )
    return Picture(
        f"Test error at batches of {WHOLE}",
        "Moving averages, every replicate at the learning rate that it chose; mean and range over replicates.",
        "bar",
        Axis("network"),
        Axis("test error", "%"),
        series,
    )


def _traffic(independence: Independence) -> Picture:
    names = independence.networks
    return Picture(
        "Collectives of normalization in a training step",
        f"Forward and backward, counted in {PROCESSES} processes; averaging the gradients is left out.",
        "bar",
        Axis("network"),
        Axis("collectives"),
        [
            Series(label, names, [independence.counts[index, norm][0] for index in range(len(names))])
            for norm, label in ((CONTROL, "synchronized BatchNorm"), (JUDGED, NORMS[JUDGED]))
        ],
    )


def _table(independence: Independence) -> Table:
    return Table(
        "Communication and dependence on companions",
        ["network", "norm", "collectives", "bytes per process", "collectives for gradients", "change by companions"],
        [
            [
                independence.networks[index],
                "synchronized BatchNorm" if norm == CONTROL else NORMS[norm],
                *counts,
                independence.moved[index, norm],
            ]
            for (index, norm), counts in independence.counts.items()
        ],
    )


def _rates(accuracy: Accuracy) -> Table:
    rows = [
        [
            describe(arm["network"]),
            NORMS[arm["norm"]],
            arm["steps"],
            accuracy.chosen[name].rate,
            mean(accuracy.errors(describe(arm["network"]), arm["norm"])),
        ]
        for name, arm in accuracy.arms.items()
    ]
    return Table("Accuracy", ["network", "norm", "steps", "learning rate", "test error, %"], rows)
