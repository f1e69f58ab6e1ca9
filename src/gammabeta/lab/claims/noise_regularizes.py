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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.layers import dropout_of
from gammabeta.lab.norms import named
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.tuning import at_best

EXACT = False
KIND = "images"

IMAGES, BATCH = 200, 64
REGIMES = {"clean": 0.0, "20 % wrong labels": 0.2}
HIGHEST = {"clean": 0.5, "20 % wrong labels": 1.0}
MARGIN = (-0.01, 0.01)
LEVELS = 8
WHOLE, GHOST = named("batch"), named("ghost:8")
CRITERION = Criterion(unit="test loss", margin=MARGIN, direction="below")
Points = list[tuple[float, float]]  # (training loss, test loss)


def lowest_loss(result: Mapping[str, Any]) -> float:
    """Return the lowest finite test loss along training, 100 where there is none."""
    return min((loss for _, _, loss in result["curve"] if loss is not None), default=100.0)


def path(result: Mapping[str, Any]) -> Points:
    """Return training and test loss wherever the training loss is lower than ever before, in falling order."""
    points: Points = []
    for _, train, test in result["curve"]:
        if train is not None and test is not None and (not points or train < points[-1][0]):
            points.append((max(train, 1e-6), test))
    return points


def difference(one: Points, other: Points, highest: float) -> float:
    """Return the mean test loss of one minus the other's at equal training losses; 0 where these do not overlap."""
    low = max(one[-1][0], other[-1][0]) if one and other else math.inf
    if low >= highest:
        return 0.0
    levels = np.linspace(math.log(low), math.log(highest), LEVELS)

    def at(points: Points) -> np.ndarray:
        rising = points[::-1]
        return np.interp(levels, [math.log(train) for train, _ in rising], [test for _, test in rising])

    return float(np.mean(at(one) - at(other)))


@dataclass(frozen=True)
class Trained:
    """The runs of every arm, named "labels|kind", at its best learning rate.

    Attributes:
        kinds: of noise: the norm and the rate of Dropout, by name; the whole batch without Dropout comes first.
        rates: the exponent of each arm's learning rate.
        found: one result per seed, by arm.
        equal: the same of the smallest ghost batch at the learning rate of the whole batch, by labels.
    """

    kinds: Mapping[str, tuple[str, float]]
    rates: Mapping[str, int]
    found: Mapping[str, list[dict[str, Any]]]
    equal: Mapping[str, list[dict[str, Any]]]

    def paths(self, arm: str) -> list[Points]:
        return [path(result) for result in self.found[arm]]

    def differences(self, labels: str, results: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the test loss of ``results`` minus that of the whole batch, seed by seed."""
        whole = self.paths(f"{labels}|{WHOLE}")
        return [difference(path(a), b, HIGHEST[labels]) for a, b in zip(results, whole, strict=True)]


def measure(experiment: Experiment) -> Outcome:
    """Compare the test loss at equal training loss, with noise of the batch's statistics and without."""
    seeds = experiment.seeds(6, 20)
    trained = _trained(experiment, seeds)
    effects = {
        (labels, kind): CRITERION.effect(
            f"{labels}: {kind} minus {WHOLE}", trained.differences(labels, trained.found[f"{labels}|{kind}"])
        )
        for labels in REGIMES
        for kind in list(trained.kinds)[1:]
    }
    # At the learning rate of the whole batch: whether the effect comes from the noise or from the learning rate.
    equal = [
        CRITERION.effect(f"{labels}: {GHOST} at the other's learning rate", trained.differences(labels, results))
        for labels, results in trained.equal.items()
    ]
    main, wrong = (effects[labels, GHOST] for labels in REGIMES)
    room = _room(trained)
    return Outcome(
        verdict=main.verdict if room.holds else "no room here",
        sentence=(
            f"at equal training loss statistics of 8 images change the test loss by {main.value:+.3f} [{main.low:.3f}, "
            f"{main.high:.3f}] with clean labels, {wrong.value:+.3f} [{wrong.low:.3f}, {wrong.high:.3f}] with 20 % "
            f"wrong ones ({wrong.verdict}); at equal learning rates {equal[0].value:+.3f} and {equal[1].value:+.3f}; "
            f"nearest is {_nearest(trained, effects)}"
        ),
        effects=[main, wrong, *equal, *(effect for key, effect in effects.items() if key[1] != GHOST)],
        room=room,
        pictures=[
            bars(
                "Test loss at equal training loss, minus that of BatchNorm over the whole batch",
                "Below 0: the noise helps. 95 % interval over seeds.",
                "regime and arm",
                Axis("difference of test losses"),
                list(effects.values()),
            ),
            *(_paths(labels, trained) for labels in REGIMES),
        ],
        tables=[_table(trained)],
        settings=f"{len(seeds)} seeds, {IMAGES} images",
        trials=experiment.trials,
    )


def _trained(experiment: Experiment, seeds: Sequence[int]) -> Trained:
    """Run every arm at its best learning rate, and the ghost batch of 8 also at that of the whole batch."""
    ghosts = ("ghost:8",) if experiment.quick else ("ghost:8", "ghost:16", "ghost:32")
    dropouts = (0.1, 0.3) if experiment.quick else (0.05, 0.1, 0.2, 0.3)
    kinds: dict[str, tuple[str, float]] = {WHOLE: ("batch", 0.0)}
    kinds |= {named(ghost): (ghost, 0.0) for ghost in ghosts}
    kinds |= {f"Dropout of {rate:g}": ("batch", rate) for rate in dropouts}
    arms = {
        f"{labels}|{kind}": {
            "network": experiment.mlp(2, **dropout_of(rate)),
            "norm": norm,
            "batch_size": BATCH,
            "steps": 200 if experiment.quick else 400,
            "images": IMAGES,
            "label_noise": share,
            "curve": 10,
        }
        for labels, share in REGIMES.items()
        for kind, (norm, rate) in kinds.items()
    }
    rates, found = at_best(experiment, arms, lowest_loss, seeds, tuning=experiment.tuning_seeds(3, 6), report="test")
    equal = experiment.grid(
        list(REGIMES),
        seeds,
        lambda labels, seed: experiment.train(
            **{**arms[f"{labels}|{GHOST}"], "report": "test"}, rate=2.0 ** rates[f"{labels}|{WHOLE}"], seed=seed
        ),
    )
    return Trained(kinds, rates, found, equal)


def _room(trained: Trained) -> Room:
    """Judge whether the network fits its training images better than it generalizes."""
    arm = f"clean|{WHOLE}"
    lowest_training = mean(points[-1][0] for points in trained.paths(arm) if points)
    fits = max(lowest_training / mean(lowest_loss(result) for result in trained.found[arm]), 0.0)
    return Room(
        fits < 1 / 3, f"lowest training loss over lowest test loss with the whole batch's statistics: {fits:.3f}"
    )


def _nearest(trained: Trained, effects: Mapping[tuple[str, str], Effect]) -> str:
    """Name the Dropout whose effect with clean labels is nearest to the ghost batch's."""
    main = effects["clean", GHOST].value
    dropouts = [kind for kind, (_, rate) in trained.kinds.items() if rate]
    kind = min(dropouts, key=lambda kind: abs(effects["clean", kind].value - main))
    return f"{kind}, {effects['clean', kind].value:+.3f}"


def _paths(labels: str, trained: Trained) -> Picture:
    """Draw the first seed's path through (training loss, test loss)."""
    series = [
        Series(kind, [train for train, _ in points], [test for _, test in points])
        for kind in trained.kinds
        if (points := trained.paths(f"{labels}|{kind}")[0])
    ]
    return Picture(
        f"Test loss against training loss, {labels}",
        "One seed; training goes from right to left. Lower is better generalization at the same fit.",
        "line",
        Axis("training loss", log=True),
        Axis("test loss", log=True),
        series,
    )


def _table(trained: Trained) -> Table:
    rows = [
        [
            *name.split("|"),
            2.0 ** trained.rates[name],
            mean(lowest_loss(result) for result in results),
            mean(points[-1][0] for points in trained.paths(name) if points),
        ]
        for name, results in trained.found.items()
    ]
    columns = ["regime", "arm", "learning rate", "lowest test loss", "training loss at the end"]
    return Table("Losses, mean over seeds", columns, rows)
