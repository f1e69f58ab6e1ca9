"""The batch's noise regularizes like a light Dropout.

Question: Does the noise of small statistics lower the test loss at the same training loss?

Claim: A sample's output depends on its companions, which acts as a mild regularizer, like a light Dropout.

Criterion: Test loss with statistics of 8 images (ghost batches; the size was fixed beforehand) minus that with
statistics of the whole batch of 64, at equal training loss, paired by seed, with a margin of 0.01. The verdict rests on
clean labels; 20 % wrong labels are a separate regime, which the sentence names, as it does the difference at equal
learning rates. The Dropout rate with the nearest effect is reported.

Room: With statistics of the whole batch, the training loss falls below a third of the lowest test loss. The network
then fits its training images better than it generalizes, so that there is something to regularize.

Method: An MLP with BatchNorm, 200 training images, batches of 64, SGD. Each arm's learning rate is tuned by its lowest
validation loss, in the mean of three (quick) or six separate seeds. With one seed, the luck of its learning rate made
two norms that do nothing look different. Along training, the losses of the training and test images are taken in
evaluation mode with exact statistics of the training images. The runs are compared at eight training losses, each
interpolated. These are evenly spaced in the logarithm, from the higher of the two lowest ones to 0.5 (1 with wrong
labels). Ghost batches of 16 and 32 and Dropout (on BatchNorm of the whole batch) are separate arms.

Settings: 2 layers of 64, relu, 200 steps. Quick: ghost of 8, Dropout of 0.1 and 0.3, 6 seeds. Full: ghost of 8, 16, 32,
Dropout of 0.05, 0.1, 0.2, 0.3, 400 steps, 20 seeds.

Sources: Luo et al. 2019, Towards Understanding Regularization in Batch Normalization (arXiv 1809.00846); Hoffer et al.
2017 (1705.08741); Ioffe & Szegedy 2015, section 3.4 (1502.03167)

Known: In a pilot run on 200 clean images, ghost of 8 gave −0.029 ± 0.012 and Dropout of 0.1 gave −0.025; with wrong
labels the ghost was worse by 0.09.
"""

import math
from statistics import mean
from typing import Any

import numpy as np

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.layers import dropout_of
from gammabeta.lab.norms import named
from gammabeta.lab.outcome import Axis, Outcome, Picture, Room, Series, Table, bars, measured
from gammabeta.lab.tuning import at_best

EXACT = False
KIND = "images"

IMAGES, BATCH = 200, 64
REGIMES = {"clean": 0.0, "20 % wrong labels": 0.2}
HIGHEST = {"clean": 0.5, "20 % wrong labels": 1.0}
MARGIN = (-0.01, 0.01)
LEVELS = 8
Points = list[tuple[float, float]]  # (training loss, test loss)


def lowest_loss(result: dict[str, Any]) -> float:
    return min((loss for _, _, loss in result["curve"] if loss is not None), default=100.0)


def path(result: dict[str, Any]) -> Points:
    """Training and test loss wherever the training loss is lower than ever before, in falling order."""
    points: Points = []
    for _, train, test in result["curve"]:
        if train is not None and test is not None and (not points or train < points[-1][0]):
            points.append((max(train, 1e-6), test))
    return points


def difference(one: Points, other: Points, highest: float) -> float:
    """Mean test loss of one less the other's at equal training losses; 0 where their training losses do not meet."""
    low = max(one[-1][0], other[-1][0]) if one and other else math.inf
    if low >= highest:
        return 0.0
    levels = np.linspace(math.log(low), math.log(highest), LEVELS)

    def at(points: Points) -> np.ndarray:
        rising = points[::-1]
        return np.interp(levels, [math.log(train) for train, _ in rising], [test for _, test in rising])

    return float(np.mean(at(one) - at(other)))


def measure(experiment: Experiment) -> Outcome:
    seeds = experiment.seeds(6, 20)
    ghosts = ("ghost:8",) if experiment.quick else ("ghost:8", "ghost:16", "ghost:32")
    dropouts = (0.1, 0.3) if experiment.quick else (0.05, 0.1, 0.2, 0.3)
    kinds: dict[str, tuple[str, float]] = {named("batch"): ("batch", 0.0)}
    kinds |= {named(ghost): (ghost, 0.0) for ghost in ghosts}
    kinds |= {f"Dropout of {rate:g}": ("batch", rate) for rate in dropouts}
    arms = {
        f"{regime}|{kind}": {
            "network": experiment.mlp(2, **dropout_of(rate)),
            "norm": norm,
            "batch_size": BATCH,
            "steps": 200 if experiment.quick else 400,
            "images": IMAGES,
            "label_noise": share,
            "curve": 10,
        }
        for regime, share in REGIMES.items()
        for kind, (norm, rate) in kinds.items()
    }
    rates, found = at_best(experiment, arms, lowest_loss, seeds, tuning=experiment.tuning_seeds(3, 6), report="test")
    paths = {name: [path(result) for result in results] for name, results in found.items()}
    base = named("batch")
    effects: dict[tuple[str, str], Any] = {}
    for regime in REGIMES:
        for kind in list(kinds)[1:]:
            values = [
                difference(a, b, HIGHEST[regime])
                for a, b in zip(paths[f"{regime}|{kind}"], paths[f"{regime}|{base}"], strict=True)
            ]
            effects[regime, kind] = measured(
                f"{regime}: {kind} less {base}", values, unit="test loss", margin=MARGIN, direction="below"
            )
    ghost = named("ghost:8")
    # The same at the rate of BatchNorm over the whole batch: whether it is the noise or the rate.
    same = []
    for regime in REGIMES:
        arm = {**arms[f"{regime}|{ghost}"], "report": "test"}
        results = experiment.run(
            [experiment.train(**arm, rate=2.0 ** rates[f"{regime}|{base}"], seed=seed) for seed in seeds]
        )
        values = [
            difference(path(a), b, HIGHEST[regime]) for a, b in zip(results, paths[f"{regime}|{base}"], strict=True)
        ]
        same.append(
            measured(
                f"{regime}: {ghost} at the other's rate", values, unit="test loss", margin=MARGIN, direction="below"
            )
        )
    main, wrong = (effects[regime, ghost] for regime in REGIMES)
    fits = max(
        mean(points[-1][0] for points in paths[f"clean|{base}"] if points)
        / mean(lowest_loss(result) for result in found[f"clean|{base}"]),
        0.0,
    )
    room = Room(
        fits < 1 / 3, f"lowest training loss over lowest test loss with the whole batch's statistics: {fits:.3f}"
    )
    like = min(dropouts, key=lambda rate: abs(effects["clean", f"Dropout of {rate:g}"].value - main.value))
    nearest = effects["clean", f"Dropout of {like:g}"]
    return Outcome(
        verdict=main.verdict if room.holds else "no room here",
        sentence=(
            f"at equal training loss statistics of 8 images change the test loss by {main.value:+.3f} [{main.low:.3f}, "
            f"{main.high:.3f}] with clean labels, {wrong.value:+.3f} [{wrong.low:.3f}, {wrong.high:.3f}] with 20 % "
            f"wrong ones ({wrong.verdict}); at equal rates {same[0].value:+.3f} and {same[1].value:+.3f}; nearest is "
            f"Dropout of {like:g}, {nearest.value:+.3f}"
        ),
        effects=[main, wrong, *same, *(effect for key, effect in effects.items() if key[1] != ghost)],
        room=room,
        pictures=[
            bars(
                "Test loss at equal training loss, less that of BatchNorm over the whole batch",
                "Below 0: the noise helps. 95 % interval over seeds.",
                "regime and arm",
                Axis("difference of test losses"),
                list(effects.values()),
            ),
            *(_paths(regime, list(kinds), paths) for regime in REGIMES),
        ],
        tables=[
            Table(
                "Losses, mean over seeds",
                ["regime", "arm", "rate", "lowest test loss", "training loss at the end"],
                [
                    [
                        name.partition("|")[0],
                        name.partition("|")[2],
                        2.0 ** rates[name],
                        mean(lowest_loss(result) for result in found[name]),
                        mean(points[-1][0] for points in paths[name] if points),
                    ]
                    for name in arms
                ],
            )
        ],
        settings=f"{len(seeds)} seeds, {IMAGES} images",
        trials=experiment.trials,
    )


def _paths(regime: str, kinds: list[str], paths: dict[str, list[Points]]) -> Picture:
    """The first seed's way through (training loss, test loss)."""
    series = [
        Series(kind, [train for train, _ in points], [test for _, test in points])
        for kind in kinds
        if (points := paths[f"{regime}|{kind}"][0])
    ]
    return Picture(
        f"Test loss against training loss, {regime}",
        "One seed; training goes from right to left. Lower is better generalization at the same fit.",
        "line",
        Axis("training loss", log=True),
        Axis("test loss", log=True),
        series,
    )
