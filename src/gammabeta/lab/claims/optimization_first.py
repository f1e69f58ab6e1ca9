"""BatchNorm's gain is mostly optimization.

Question: BatchNorm lowers the test error. How much of that comes from a lower training loss after the same steps, and
how much from a smaller error at the same training loss?

Claim: The core value of BatchNorm is optimization: most of its gain in test error comes from the lower training loss.

Criterion: The gain is split into two parts, in percentage points of test error. E(L) is an arm's test error as a
function of its training loss, N and B are the arms without BatchNorm and with it, and L_N and L_B their training losses
after the same steps. Where L_B < L_N, the part of optimization is E_B(L_N) − E_B(L_B), and that of generalization is
E_N(L_N) − E_B(L_N), the gap at equal training loss. Otherwise the first is E_N(L_N) − E_N(L_B), and the second is
E_N(L_B) − E_B(L_B). The two add up to the gain. The effect is the first minus the second, paired by replicate, above 1
point. Each number of epochs of each network is a regime.

Room: A regime is judged where BatchNorm's gain in test error is above 2 points in the median of the replicates.

Method: SGD with momentum, warm-up, half a cosine to 0 and weight decay, batches of 64. An arm is trained for several
numbers of epochs, each with its own schedule, so that every point of E(L) is the end of a whole training run. Each arm,
number of epochs and replicate has its own learning rate, chosen on the replicate's own validation split among three
around the best of a coarse search. E(L) is interpolated linearly in log L between these runs and the untrained network,
whose loss is the logarithm of the number of classes. Runs whose training loss is not below that of all shorter ones are
left out. Training and test losses are taken in evaluation mode with exact statistics of the training images.

Settings: at most 2,000 training images. Quick: MLP of 12 layers of 64, relu, matched initialization, and the user's
model; 1, 4 and 12 epochs; 5 replicates. Full: also 4 layers, the small ResNet, and 40 epochs; 16 replicates. The
shortest one only serves E(L).

Sources: Ioffe & Szegedy 2015 (arXiv 1502.03167); Bjorck et al. 2018, Understanding Batch Normalization (1806.02375);
Luo et al. 2019, Towards Understanding Regularization in Batch Normalization (1809.00846)

Known: Bjorck et al. trace most of the gain to larger learning rates, and with small ones find little left of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np

from gammabeta.lab.answers import precision_of
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.interval import Precision
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

BATCH, IMAGES, LEAST = 64, 2000, 2.0
ARMS = ("none", "batch")
CRITERION = Criterion(unit="percentage points", margin=(-1.0, 1.0), direction="above")
Point = tuple[float, float]  # training loss, test error in percent
Arm = tuple[int, str, int]  # network, norm, epochs


# --- the split ---


def path(untrained: Point, ends: Sequence[Point]) -> list[Point]:
    """Return the untrained network's point and those of runs, in order, with a lower training loss than all before."""
    points = [untrained]
    for loss, error in ends:
        if loss < points[-1][0]:
            points.append((max(loss, 1e-9), error))
    return points


def error_at(points: Sequence[Point], loss: float) -> float:
    """Interpolate the test error at a training loss, linearly in its logarithm; beyond the ends it is the end's."""
    rising = points[::-1]
    return float(np.interp(math.log(max(loss, 1e-9)), [math.log(at) for at, _ in rising], [e for _, e in rising]))


def parts(without: Sequence[Point], ours: Sequence[Point], ends: tuple[Point, Point]) -> tuple[float, float]:
    """Split the gain between two ends into the parts of optimization and of generalization.

    Args:
        without, ours: E(L) of the arm without BatchNorm and of the one with it, as :func:`path` returns it.
        ends: where the two arms end.
    """
    (loss_n, error_n), (loss_b, error_b) = ends
    if loss_b < loss_n:
        between = error_at(ours, loss_n)
        return between - error_b, error_n - between
    between = error_at(without, loss_b)
    return error_n - between, between - error_b


# --- the claim ---


@dataclass(frozen=True)
class Regime:
    """A network after a number of epochs: its gain and the parts of it, in points, one per replicate."""

    name: str
    gain: Effect
    precision: Precision  # of the gain, and taken for its parts
    optimization: list[float]
    generalization: list[float]
    losses: tuple[float, float]  # mean training loss without BatchNorm and with it

    @property
    def median_gain(self) -> float:
        return median(map(sum, zip(self.optimization, self.generalization, strict=True)))

    @property
    def has_room(self) -> bool:
        return self.median_gain > LEAST


def measure(experiment: Experiment) -> Outcome:
    """Split BatchNorm's gain in test error into what a lower training loss explains, and the rest."""
    chosen = networks(experiment)
    lengths = (1, 4, 12) if experiment.quick else (1, 4, 12, 40)
    replicates = experiment.seeds(5, 16)
    runs = choose_rates(experiment, _arms(experiment, chosen, lengths), replicates)
    regimes = [
        _regime(experiment, describe(network), index, lengths, epochs, runs)
        for index, network in enumerate(chosen)
        for epochs in lengths[1:]
    ]
    effects = {
        regime.name: CRITERION.effect(
            f"{regime.name}: optimization minus generalization",
            differences(regime.optimization, regime.generalization),
            regime.precision,
        )
        for regime in regimes
    }
    verdicts: dict[str, Verdict] = {
        regime.name: effects[regime.name].verdict if regime.has_room else "no room here" for regime in regimes
    }
    room = Room(
        any(regime.has_room for regime in regimes),
        f"median gain in test error, more than {LEAST:g} points required: "
        + "; ".join(
            f"{regime.name} {regime.median_gain:+.1f}" + ("" if regime.has_room else " (no room)") for regime in regimes
        ),
    )
    return Outcome(
        verdict=over_regimes(list(verdicts.values())),
        sentence=_sentence([regime for regime in regimes if regime.has_room], effects),
        effects=[*effects.values(), *(regime.gain for regime in regimes)],
        room=room,
        pictures=[
            bars(
                "Part of optimization minus part of generalization",
                "Above 0: the lower training loss explains most of the gain. 95 % interval over replicates.",
                "network and epochs",
                Axis("difference of the parts", "percentage points"),
                list(effects.values()),
            ),
            *(_curves(describe(network), index, lengths, runs) for index, network in enumerate(chosen)),
        ],
        tables=[_table(regimes)],
        settings=f"{len(replicates)} replicates, {_images(experiment)} training images",
        regimes=verdicts,
        trials=experiment.trials,
    )


def networks(experiment: Experiment) -> list[Mapping[str, Any]]:
    chosen = [experiment.mlp(depth) for depth in ((12,) if experiment.quick else (4, 12))]
    return [*chosen, experiment.convolutional] if experiment.user or not experiment.quick else chosen


def _images(experiment: Experiment) -> int:
    return min(IMAGES, len(experiment.task.train))


def _arms(
    experiment: Experiment, chosen: Sequence[Mapping[str, Any]], lengths: Sequence[int]
) -> dict[Arm, dict[str, Any]]:
    images = _images(experiment)
    size = min(BATCH, images)
    return {
        (index, norm, epochs): {
            **RECIPE,
            "network": dict(network),
            "norm": norm,
            "batch_size": size,
            "steps": epochs * (images // size),
            "images": images,
        }
        for index, network in enumerate(chosen)
        for norm in ARMS
        for epochs in lengths
    }


def _end(result: Mapping[str, Any], untrained: Point) -> Point:
    """Return where a run ends; where its loss was not finite, no better than the untrained network."""
    loss = result["train_loss"]
    return untrained if loss is None else (float(loss), 100 * float(result["error"]))


def _regime(
    experiment: Experiment, name: str, index: int, lengths: Sequence[int], epochs: int, runs: Mapping[Arm, Chosen]
) -> Regime:
    classes = experiment.task.classes
    untrained = (math.log(classes), 100 * (1 - 1 / classes))
    of_replicates = []
    for place in range(len(runs[index, "none", epochs].results)):
        ends = {
            norm: [_end(runs[index, norm, length].results[place], untrained) for length in lengths] for norm in ARMS
        }
        at = lengths.index(epochs)
        without, ours = (path(untrained, ends[norm]) for norm in ARMS)
        of_replicates.append((*parts(without, ours, (ends["none"][at], ends["batch"][at])), ends))
    none, batch = (runs[index, norm, epochs].results for norm in ARMS)
    errors = [[100 * result["error"] for result in results] for results in (none, batch)]
    precision = precision_of(none, batch, len(experiment.task.test), _images(experiment))
    gain = CRITERION.effect(f"{name}, {epochs} epochs: gain in test error", differences(*errors), precision)
    losses = [mean(ends[norm][lengths.index(epochs)][0] for _, _, ends in of_replicates) for norm in ARMS]
    return Regime(
        f"{name}, {epochs} epochs",
        gain,
        precision,
        [first for first, _, _ in of_replicates],
        [second for _, second, _ in of_replicates],
        (losses[0], losses[1]),
    )


def _sentence(regimes: Sequence[Regime], effects: Mapping[str, Effect]) -> str:
    if not regimes:
        return f"no regime has room: BatchNorm's median gain in test error is at most {LEAST:g} points"
    return "BatchNorm's gain in test error, from a lower training loss and at equal training loss: " + "; ".join(
        f"{regime.name} {mean(regime.optimization):+.1f} and {mean(regime.generalization):+.1f} points, a difference "
        f"of {effects[regime.name].value:+.1f} [{effects[regime.name].low:.1f}, {effects[regime.name].high:.1f}] "
        f"({effects[regime.name].verdict})"
        for regime in regimes
    )


def _curves(name: str, index: int, lengths: Sequence[int], runs: Mapping[Arm, Chosen]) -> Picture:
    """Draw the test error at the end of runs of each length over their training loss, means over replicates."""
    series = []
    for norm in ARMS:
        of_lengths = [runs[index, norm, length].results for length in lengths]
        finite = [[r for r in results if r["train_loss"] is not None] for results in of_lengths]
        kept = [results for results in finite if results]
        series.append(
            Series(
                NORMS[norm],
                [mean(result["train_loss"] for result in results) for results in kept],
                [100 * mean(result["error"] for result in results) for results in kept],
            )
        )
    return Picture(
        f"{name}: test error over training loss",
        f"Each point is a whole run: {', '.join(map(str, lengths))} epochs, right to left. Means over replicates. "
        "Along a curve: optimization; between the curves: generalization.",
        "line",
        Axis("training loss", log=True),
        Axis("test error", "%", log=True),
        series,
    )


def _table(regimes: Sequence[Regime]) -> Table:
    return Table(
        "The parts of BatchNorm's gain, percentage points of test error, means over replicates",
        [
            "network and epochs",
            "gain",
            "by a lower training loss",
            "at equal training loss",
            "training loss without",
            "training loss with BatchNorm",
        ],
        [
            [regime.name, regime.gain.value, mean(regime.optimization), mean(regime.generalization), *regime.losses]
            for regime in regimes
        ],
    )
