"""GroupNorm needs no synchronization, and is slightly worse than large-batch BatchNorm.

Question: What does a norm that takes its statistics from one sample save between processes, and what does it cost in
accuracy?

Claim: GroupNorm is independent of the batch and needs no communication; its accuracy is slightly below that of
BatchNorm with a large batch.

Criterion: First an identity. In a forward and backward pass of each network in two processes, GroupNorm makes no
collective. In training, a sample's output and the gradient of its input change by at most 10⁻⁶ of the largest value
when all its companions are exchanged at equal batch size. (The change is exactly 0 except with kernels whose rounding
depends on the place in the batch.) Then the accuracy: GroupNorm's test error minus BatchNorm's at batches of 32, by the
median over networks of each seed's difference, with a margin of 1 percentage point. Supported if the identity holds and
the difference is entirely above the margin. Contradicted if the identity fails or the difference is entirely below
minus the margin. Equivalent if it is entirely within: GroupNorm then saves the communication at no cost.

Room: Two controls. Synchronized BatchNorm in the same networks and processes makes collectives and depends on its
companions by more than 10⁻³, so that the count and the comparison can detect both. Both norms also train: validation
errors on the tuning seed are below half of that of chance.

Method: Real gloo processes with one batch each. Collectives are counted as torch dispatches them, only in forward and
backward of the loss; averaging the gradients, which every norm needs alike, is counted separately. Accuracy: one
process with the whole batch of 32, which is what synchronized processes compute (sync_equals_large_batch). It is
trained by SGD without momentum and evaluated with exact statistics. Each arm's learning rate is tuned on the validation
split with one (quick) or six separate seeds, and the result comes from the test split.

Settings: 2 processes of 16 images; MLP of 2 layers and the small ResNet (or the user's model). Quick: MLP with 200
steps, 3 seeds; the ResNet only for the identity, or the user's model in place of the MLP. Full: MLP with 300 steps and
the ResNet with 400, 60 seeds (6 and 20 at first, which was inconclusive).

Sources: Wu & He 2018, table 1 (arXiv 1803.08494); Peng et al. 2018, MegDet (1711.07240)

Known: Wu & He, ImageNet, batches of 32: BatchNorm 23.6 %, GroupNorm 24.1 % error. In a pilot run on digits with the
MLP: BatchNorm 2.4, GroupNorm 5.4.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, median
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
from gammabeta.lab.images.training import average_gradients, chance
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Effect, Outcome, Picture, Room, Series, Table, measured
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import at_best, error_then_loss
from gammabeta.lab.verdict import Verdict, weakest
from gammabeta.statistics import Synced

EXACT = False
KIND = "images"

PROCESSES, BATCH = 2, 16
WHOLE = PROCESSES * BATCH
MARGIN = (-1.0, 1.0)
SAME, DIFFERENT = 1e-6, 1e-3
CONTROL, JUDGED = "batch", "group"
SYNCED = (CONTROL,)  # which arms synchronize


def own_traffic(
    *, task: Mapping[str, str], networks: Sequence[Mapping[str, Any]], norms: Sequence[str], synced: Sequence[str]
) -> list[Any]:
    """In each process: (network, norm, collectives of the pass, bytes of them, collectives that average gradients)."""
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
    """Collectives of a forward and a backward, as each process counts its own."""
    settings = {
        "task": dict(task), "networks": [dict(one) for one in networks], "norms": list(norms), "synced": list(synced)
    }  # fmt: skip
    of_rank = processes.run(f"{__name__}:own_traffic", settings, PROCESSES)
    return {"rows": [max(rows) for rows in zip(*of_rank, strict=True)]}


@versioned(1)
def companions(*, task: Mapping[str, str], network: Mapping[str, Any], norm: str) -> dict[str, Any]:
    """How far a sample's output and its input's gradient move when its companions are exchanged, over the largest."""
    data = load(task)
    first, second = data.train.x_nchw[:BATCH], data.train.x_nchw[BATCH : 2 * BATCH].clone()
    second[0] = first[0]

    def own(x_nchw: Tensor) -> tuple[Tensor, Tensor]:
        x = x_nchw.double().requires_grad_()
        torch.manual_seed(0)  # dropout, if the user's model has any
        y = build(data, network, norm, 0).double().train()(x)
        functional.cross_entropy(y[:1], data.train.y_n[:1]).backward()
        assert x.grad is not None
        return y[0].detach(), x.grad[0]

    moved = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(own(first), own(second), strict=True)]
    return {"output": moved[0], "gradient": moved[1]}


def measure(experiment: Experiment) -> Outcome:
    if not processes.available():
        return Outcome(
            "no room here",
            "this torch has no gloo, which processes would talk by",
            [],
            Room(False, "torch has no gloo"),
        )
    mlp, conv = experiment.mlp(2), experiment.convolutional
    networks = [mlp, conv]
    given = [dict(network) for network in networks]
    task, norms = dict(experiment.source), (CONTROL, JUDGED)
    cells = [(index, norm) for index in range(len(networks)) for norm in norms]
    counted, *results = experiment.run(
        [
            Trial(
                f"{__name__}:traffic", {"task": task, "networks": given, "norms": list(norms), "synced": list(SYNCED)}
            ),
            *(
                Trial(f"{__name__}:companions", {"task": task, "network": given[index], "norm": norm})
                for index, norm in cells
            ),
        ]
    )
    rows = counted["rows"]
    counts = {(index, norm): (collectives, sent, apart) for index, norm, collectives, sent, apart in rows}
    moved = {
        cell: max(_number(value) for value in result.values()) for cell, result in zip(cells, results, strict=True)
    }
    judged = [(index, JUDGED) for index in range(len(networks))]
    wrong = sum((counts[cell][0] > 0) + (moved[cell] > SAME) for cell in judged)
    identity = Effect.exactly(
        "GroupNorm's passes that communicate or depend on companions", wrong, 2 * len(judged), "checks"
    )

    trained = [(conv, 300)] if experiment.user else [(mlp, 200)]
    if not experiment.quick:
        trained = [(mlp, 300), (conv, 400)]
    seeds = experiment.seeds(3, 60)
    arms = {
        f"{describe(network)} {norm}": {"network": dict(network), "norm": norm, "batch_size": WHOLE, "steps": steps}
        for network, steps in trained
        for norm in norms
    }
    exponents, found = at_best(
        experiment, arms, error_then_loss, seeds, tuning=experiment.tuning_seeds(1, 6), report="test"
    )
    tuned = experiment.run(
        [
            experiment.train(**arm, rate=2.0 ** exponents[name], seed=experiment.tuning_seed)
            for name, arm in arms.items()
        ]
    )
    errors = {name: [100 * result["error"] for result in of_arm] for name, of_arm in found.items()}
    names = [describe(network) for network, _ in trained]
    costs = {
        name: [g - b for g, b in zip(errors[f"{name} {JUDGED}"], errors[f"{name} {CONTROL}"], strict=True)]
        for name in names
    }
    settings: dict[str, Any] = {"unit": "percentage points", "margin": MARGIN, "direction": "above"}
    cost = measured(
        "GroupNorm's test error less BatchNorm's at 32, median of networks",
        [median(of_seed) for of_seed in zip(*costs.values(), strict=True)],
        **settings,
    )
    each = [measured(name, values, **settings) for name, values in costs.items()]
    allowed = 0.5 * (1 - chance(experiment.task))
    worst = max(result["error"] for result in tuned)
    least_seen = min(moved[index, CONTROL] for index in range(len(networks)))
    fewest = min(counts[index, CONTROL][0] for index in range(len(networks)))
    room = Room(
        fewest > 0 and least_seen > DIFFERENT and worst < allowed,
        f"synchronized BatchNorm makes {fewest} collectives or more and depends on companions by {least_seen:.2g} or "
        f"more; largest validation error {worst:.3f}, below {allowed:.2f}",
    )
    verdict: Verdict = "contradicted" if wrong else weakest([identity.verdict, cost.verdict])
    sent = ", ".join(
        f"{describe(network)} {counts[index, CONTROL][0]} with {counts[index, CONTROL][1]} bytes"
        for index, network in enumerate(networks)
    )
    communicates = (
        f"GroupNorm makes no collective and depends on no companion (synchronized BatchNorm a step: {sent})"
        if not wrong
        else f"GroupNorm communicates or depends on companions in {wrong} of {2 * len(judged)} checks"
    )
    costly = "; ".join(
        f"{name} {mean(errors[f'{name} {JUDGED}']):.1f} against {mean(errors[f'{name} {CONTROL}']):.1f} %"
        for name in names
    )
    return Outcome(
        verdict=verdict if room.holds else "no room here",
        sentence=(
            f"{communicates}; its test error at batches of {WHOLE} is {cost.value:+.1f} points [{cost.low:.1f}, "
            f"{cost.high:.1f}] from BatchNorm's ({costly})"
        ),
        effects=[cost, *each, identity],
        room=room,
        pictures=[_errors(names, errors), _traffic([describe(network) for network in networks], counts)],
        tables=[_table(networks, counts, moved), _rates(arms, exponents, errors)],
        settings=f"{len(seeds)} seeds, {PROCESSES} processes",
        trials=experiment.trials,
    )


def _number(value: float | None) -> float:
    return float("inf") if value is None else value


def _errors(names: Sequence[str], errors: Mapping[str, list[float]]) -> Picture:
    series = []
    for norm in (CONTROL, JUDGED):
        of_norm = [errors[f"{name} {norm}"] for name in names]
        series.append(
            Series(NORMS[norm], names, [mean(e) for e in of_norm], [min(e) for e in of_norm], [max(e) for e in of_norm])
        )
    return Picture(
        f"Test error at batches of {WHOLE}",
        "Each at its best rate, exact statistics; mean and range over seeds.",
        "bar",
        Axis("network"),
        Axis("test error", "%"),
        series,
    )


def _traffic(names: Sequence[str], counts: Mapping[tuple[int, str], tuple[int, int, int]]) -> Picture:
    return Picture(
        "Collectives of normalization in a training step",
        f"Forward and backward, counted in {PROCESSES} processes; averaging the gradients is left out.",
        "bar",
        Axis("network"),
        Axis("collectives"),
        [
            Series(label, names, [counts[index, norm][0] for index in range(len(names))])
            for norm, label in ((CONTROL, "synchronized BatchNorm"), (JUDGED, NORMS[JUDGED]))
        ],
    )


def _table(
    networks: Sequence[Mapping[str, Any]],
    counts: Mapping[tuple[int, str], tuple[int, int, int]],
    moved: Mapping[tuple[int, str], float],
) -> Table:
    return Table(
        "Communication and dependence on companions",
        ["network", "norm", "collectives", "bytes a process", "of gradients, apart", "change by companions"],
        [
            [
                describe(networks[index]),
                "synchronized BatchNorm" if norm == CONTROL else NORMS[norm],
                *counts[index, norm],
                moved[index, norm],
            ]
            for index, norm in counts
        ],
    )


def _rates(
    arms: Mapping[str, Mapping[str, Any]], exponents: Mapping[str, int], errors: Mapping[str, list[float]]
) -> Table:
    return Table(
        "Accuracy",
        ["network", "norm", "steps", "rate", "test error, %"],
        [
            [describe(arm["network"]), NORMS[arm["norm"]], arm["steps"], 2.0 ** exponents[name], mean(errors[name])]
            for name, arm in arms.items()
        ],
    )
