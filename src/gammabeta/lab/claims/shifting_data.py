"""Shifting data hurts BatchNorm.

Question: What do an unshuffled stream, and test images unlike the training images, cost BatchNorm compared with
GroupNorm?

Claim: Few-shot, online and shifting streams hurt BatchNorm more than a norm that looks at one sample.

Criterion: For each seed and cell (network × shift), BatchNorm's loss minus GroupNorm's, in percentage points of test
accuracy, with a margin of 2. For the stream it is the loss from shuffled batches to batches of one class each. For test
images it is the loss from clean to corrupted ones. Each cell is a regime.

Room: On shuffled batches both norms exceed three times the accuracy of chance, by the median over seeds. At least one
shift also costs one of them more than the margin; a cell where none loses as much on average does not count.

Method: SGD, batches of 8, the learning rate tuned for each norm and each order of the stream on a separate seed. In the
stream of runs every batch holds 8 images of one class, and the classes take turns. Evaluation uses exact statistics (of
256 shuffled training images), so that what is lost was lost in training. Networks trained on shuffled batches are also
tested on corrupted images: normal noise of 1 standard deviation, a 3 × 3 mean filter, or a rotation by 30 degrees.
There BatchNorm evaluates with the statistics of the clean training images, as it would in use. Gain and offset are not
judged: recalibrating undoes them exactly, and GroupNorm is immune to gain.

Settings: MLP of 2 layers and the small ResNet (or the user's model); 250 steps and 4 seeds (quick), 500 steps and 10
seeds (full).

Sources: Ioffe 2017, Batch Renormalization, section 4.3 (arXiv 1702.03275); Wu & Johnson 2021, Rethinking "Batch",
section 6 (2105.07576); Hendrycks & Dietterich 2019 (1903.12261)

Known: With runs of 8 on digits: MLP 78 with BatchNorm, 95 with GroupNorm; ResNet 94 and 86. At a shared learning rate
it is 72 and 9.5: a shared rate decides the outcome on its own.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.task import Split
from gammabeta.lab.images.training import POPULATION, Training, chance, error_and_loss, exact_statistics, fit
from gammabeta.lab.interval import Precision
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Room, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import error_then_loss, tune
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

ARMS = ("batch", "group")
ORDERS = ("shuffled", "runs")
MARGIN = (-2.0, 2.0)
RUN = 8
CORRUPTIONS = ("noise", "blur", "rotation")
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="above")
Arm = tuple[str, str, str]  # network, norm, order of the stream
Losses = dict[str, dict[str, list[float]]]  # by cell and norm: points of accuracy, one value per seed


# --- the trials ---


def corrupted(x_nchw: Tensor, how: str, seed: int) -> Tensor:
    """Add noise of 1 standard deviation to standardized images, blur them 3 × 3, or rotate them by 30 degrees."""
    if how == "noise":
        return x_nchw + torch.randn(x_nchw.shape, generator=torch.Generator().manual_seed(seed))
    if how == "blur":
        return functional.avg_pool2d(x_nchw, 3, 1, 1, count_include_pad=False)
    if how == "rotation":
        angle = math.radians(30)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
        grid = functional.affine_grid(turn.expand(len(x_nchw), 2, 3), list(x_nchw.shape), align_corners=False)
        return functional.grid_sample(x_nchw, grid, padding_mode="border", align_corners=False)
    raise ValueError(f"corrupted: expected one of {', '.join(CORRUPTIONS)}, got {how}")


@versioned(1)
def stream(
    *, task: Mapping[str, Any], network: Mapping[str, Any], norm: str, order: str, rate: float, steps: int, seed: int,
    report: str,
) -> dict[str, Any]:  # fmt: skip
    """Train on the stream; return error and loss on the reported split, and its error under each corruption."""
    data = load(task)
    training = Training(network=network, norm=norm, rate=rate, batch_size=RUN, steps=steps, seed=seed, order=order)
    fitted = fit(data, data.train, training)
    if fitted.diverged is not None:
        return {"error": 1.0, "loss": None, "corrupted": dict.fromkeys(CORRUPTIONS, 1.0)}
    split: Split = getattr(data, report)
    generator = torch.Generator().manual_seed(seed)
    population = data.train.x_nchw[torch.randperm(len(data.train), generator=generator)[:POPULATION]]
    with exact_statistics(fitted.model, population):
        error, loss = error_and_loss(fitted.model, split)
        wrong = {
            how: error_and_loss(fitted.model, Split(corrupted(split.x_nchw, how, seed), split.y_n))[0]
            for how in CORRUPTIONS
        }
    return {"error": error, "loss": loss, "corrupted": wrong}


# --- the claim ---


def measure(experiment: Experiment) -> Outcome:
    """Compare what each shift costs BatchNorm and GroupNorm."""
    seeds = experiment.seeds(4, 10)
    steps = 250 if experiment.quick else 500
    exponents, found = _runs(experiment, seeds, steps)
    accuracy = {key: [100 * (1 - result["error"]) for result in of_key] for key, of_key in found.items()}
    losses = _losses(found, accuracy)
    cells = {name: differences(of_norm["batch"], of_norm["group"]) for name, of_norm in losses.items()}
    precision = Precision(samples=len(experiment.task.test))
    each = [CRITERION.effect(name, values, precision) for name, values in cells.items()]
    costly = {name for name, of_norm in losses.items() if max(map(mean, of_norm.values())) > MARGIN[1]}
    regimes: dict[str, Verdict] = {
        effect.name: effect.verdict if effect.name in costly else "no room here" for effect in each
    }
    least = min(median(values) for (_, _, order), values in accuracy.items() if order == "shuffled") / 100
    worst = max(mean(values) for of_norm in losses.values() for values in of_norm.values())
    bound = 3 * chance(experiment.task)
    room = Room(
        least > bound and worst > MARGIN[1],
        f"shuffled: accuracy at least {least:.2f}, above {bound:.2f}; the largest loss by a shift is {worst:.1f} "
        "points",
    )
    return Outcome(
        verdict=over_regimes(list(regimes.values())) if room.holds else "no room here",
        sentence=_sentence(each, regimes),
        effects=each,
        room=room,
        pictures=[
            bars(
                "BatchNorm's loss by a shift minus GroupNorm's",
                "Above 0: the shift costs BatchNorm more. 95 % interval over seeds.",
                "network and shift",
                Axis("difference of losses", "percentage points"),
                each,
            )
        ],
        tables=[
            Table(
                "Test accuracy lost by a shift, percentage points, mean over seeds",
                ["network and shift", *(NORMS[norm] for norm in ARMS)],
                [[name, *(mean(of_norm[norm]) for norm in ARMS)] for name, of_norm in losses.items()],
            ),
            Table(
                "Test accuracy, %, mean over seeds",
                ["network", "norm", "stream", "learning rate", "accuracy"],
                [
                    [network, NORMS[norm], order, 2.0 ** exponents[network, norm, order], mean(values)]
                    for (network, norm, order), values in accuracy.items()
                ],
            ),
        ],
        settings=f"{len(seeds)} seeds, {steps} steps",
        regimes=regimes,
        trials=experiment.trials,
    )


def _runs(
    experiment: Experiment, seeds: Sequence[int], steps: int
) -> tuple[dict[Arm, int], dict[Arm, list[dict[str, Any]]]]:
    """Run every arm at its best learning rate; return that rate's exponent and the results of each arm."""
    arms: dict[Arm, dict[str, Any]] = {
        (describe(network), norm, order): {
            "task": dict(experiment.source), "network": dict(network), "norm": norm, "order": order, "steps": steps,
        }
        for network in (experiment.mlp(2), experiment.convolutional)
        for norm in ARMS
        for order in ORDERS
    }  # fmt: skip

    def trial(arm: Mapping[str, Any], exponent: int, seed: int, report: str) -> Trial:
        return Trial(f"{__name__}:stream", {**arm, "rate": 2.0**exponent, "seed": seed, "report": report})

    best = tune(
        experiment,
        list(arms.values()),
        error_then_loss,
        make=lambda arm, exponent: trial(arm, exponent, experiment.tuning_seed, "validation"),
    )
    exponents = dict(zip(arms, best, strict=True))
    found = experiment.grid(list(arms), seeds, lambda key, seed: trial(arms[key], exponents[key], seed, "test"))
    return exponents, found


def _losses(found: Mapping[Arm, list[dict[str, Any]]], accuracy: Mapping[Arm, list[float]]) -> Losses:
    """Return what each shift costs each norm."""
    losses: Losses = {}
    for network in dict.fromkeys(network for network, _, _ in found):
        for norm in ARMS:
            shuffled = accuracy[network, norm, "shuffled"]
            shifted = {f"runs of {RUN}": accuracy[network, norm, "runs"]} | {
                how: [100 * (1 - result["corrupted"][how]) for result in found[network, norm, "shuffled"]]
                for how in CORRUPTIONS
            }
            for shift, values in shifted.items():
                losses.setdefault(f"{network}, {shift}", {})[norm] = differences(shuffled, values)
    return losses


def _sentence(each: list[Effect], regimes: Mapping[str, Verdict]) -> str:
    """Tell what each shift costs BatchNorm more than GroupNorm, and how that was decided."""
    return "points of accuracy that a shift costs BatchNorm more than GroupNorm: " + ", ".join(
        f"{e.name} {e.value:+.1f} [{e.low:.1f}, {e.high:.1f}] ({regimes[e.name]})" for e in each
    )
