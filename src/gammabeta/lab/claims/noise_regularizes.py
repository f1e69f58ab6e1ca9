"""The batch's noise regularizes like a light Dropout.

Question: Does the noise of small statistics lower the test loss at the same training loss?

Claim: A sample's output depends on its companions, which acts as a mild regularizer, like a light Dropout.

Criterion: Test loss with statistics of 8 images (ghost batches; the size was fixed beforehand) minus that with
statistics of the whole batch of 64, at equal training loss, paired by replicate, with a margin of 0.01. Clean labels
and 20 % wrong labels are the regimes.

Room: With statistics of the whole batch, the training loss falls below a third of the lowest test loss. The network
then fits its training images better than it generalizes, so that there is something to regularize. A regime in which
some replicate's two runs have no training loss in common has no room.

Method: An MLP with BatchNorm, 200 training images, batches of 64, SGD with momentum, warm-up, half a cosine to 0 and
weight decay. Each arm and replicate has its own learning rate, chosen by the validation loss among three around the
best of a coarse search. Along training, the losses of the training and test images are taken in evaluation mode with
exact statistics of the training images. The runs are compared at eight training losses, each interpolated. These are
evenly spaced in the logarithm, from the higher of the two lowest ones to 0.5 (1 with wrong labels). Dose and response:
the noise of a ghost batch of n images has a variance in proportion to 1/n − 1/64. With clean labels a line through 0 is
fitted to the differences over that dose, and its value at 8 images is reported, as is the difference of ghost batches
of 8 and of 32. Equivalent Dropout: of Dropout (on BatchNorm of the whole batch) the rate whose difference equals that
of the ghost batch of 8, where differences are interpolated linearly between the rates tried and 0. Its 95 % interval
holds the rates whose difference from the ghost batch, paired by replicate, has an interval that holds 0. The ghost
batch of 8 at the learning rates of the whole batch is a separate effect.

Settings: 2 layers of 64, relu; with clean labels ghost batches of 8, 16 and 32. Quick: Dropout of 0.1 and 0.3, 200
steps, 5 replicates. Full: Dropout of 0.05, 0.1, 0.2 and 0.3, 400 steps, 20 replicates.

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
from gammabeta.lab.images.losses import precision_of_losses
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.interval import CONTINUOUS, Precision, interval
from gammabeta.lab.norms import named
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

IMAGES, BATCH = 200, 64
REGIMES = {"clean": 0.0, "20 % wrong labels": 0.2}
HIGHEST = {"clean": 0.5, "20 % wrong labels": 1.0}
MARGIN = (-0.01, 0.01)
LEVELS = 8
SIZES = (8, 16, 32)
GHOSTS = {named(f"ghost:{size}"): 1 / size - 1 / BATCH for size in SIZES}  # the dose of noise
WHOLE, GHOST, SMALLEST_DOSE = named("batch"), named("ghost:8"), named("ghost:32")
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


def lowest_common(one: Points, other: Points) -> float:
    """Return the lowest training loss that both paths reach, infinity where one of them is empty."""
    return max(one[-1][0], other[-1][0]) if one and other else math.inf


def difference(one: Points, other: Points, highest: float) -> float:
    """Return the mean test loss of one minus the other's at equal training losses; 0 where these do not overlap."""
    low = lowest_common(one, other)
    if low >= highest:
        return 0.0
    levels = np.linspace(math.log(low), math.log(highest), LEVELS)

    def at(points: Points) -> np.ndarray:
        rising = points[::-1]
        return np.interp(levels, [math.log(train) for train, _ in rising], [test for _, test in rising])

    return float(np.mean(at(one) - at(other)))


def final_loss(result: Mapping[str, Any]) -> float:
    """Return the loss at the end of training, 100 where it is not finite."""
    return 100.0 if result["loss"] is None else min(float(result["loss"]), 100.0)


def at_dose(by_dose: Mapping[float, Sequence[float]], dose: float) -> list[float]:
    """Fit a line through 0 to differences over doses, replicate by replicate, and return its value at a dose."""
    squares = sum(each**2 for each in by_dose)
    lines = zip(*([each * value for value in values] for each, values in by_dose.items()), strict=True)
    return [dose * sum(products) / squares for products in lines]


def interpolated(by_rate: Mapping[float, Sequence[float]], rate: float) -> list[float]:
    """Interpolate differences linearly between rates of Dropout, replicate by replicate; 0 at a rate of 0."""
    rates = sorted(by_rate)
    by_replicate = zip(*(by_rate[each] for each in rates), strict=True)
    return [float(np.interp(rate, [0.0, *rates], [0.0, *values])) for values in by_replicate]


def equivalent_dropout(
    ghost: Sequence[float], by_rate: Mapping[float, Sequence[float]], precision: Precision = CONTINUOUS
) -> tuple[float, float, float] | None:
    """Return the rate of Dropout with the ghost batch's difference, and the lowest and highest that cannot be excluded.

    None where every rate up to the highest one tried is excluded.
    """
    tried = np.linspace(0.0, max(by_rate), 121).tolist()
    apart = {rate: interval(differences(ghost, interpolated(by_rate, rate)), precision) for rate in tried}
    kept = [rate for rate, around in apart.items() if around.low <= 0 <= around.high]
    nearest = min(tried, key=lambda rate: abs(apart[rate].value))
    return (nearest, min([*kept, nearest]), max([*kept, nearest])) if kept else None


@dataclass(frozen=True)
class Trained:
    """The runs of every arm, named "labels|kind", each at the learning rate that its replicate chose.

    Attributes:
        kinds: of noise: the norm and the rate of Dropout, by name; the whole batch without Dropout comes first.
        chosen: the runs by arm.
        equal: the ghost batch of 8 at the learning rates of the whole batch, by labels.
    """

    kinds: Mapping[str, tuple[str, float]]
    chosen: Mapping[str, Chosen]
    equal: Mapping[str, list[dict[str, Any]]]

    @property
    def found(self) -> dict[str, list[dict[str, Any]]]:
        return {arm: chosen.results for arm, chosen in self.chosen.items()}

    def paths(self, arm: str) -> list[Points]:
        return [path(result) for result in self.found[arm]]

    def comparable(self, labels: str) -> bool:
        """Return whether in every replicate both runs reach training losses at which they are compared."""
        pairs = zip(self.paths(f"{labels}|{GHOST}"), self.paths(f"{labels}|{WHOLE}"), strict=True)
        return all(lowest_common(*pair) < HIGHEST[labels] for pair in pairs)

    def differences(self, labels: str, results: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the test loss of ``results`` minus that of the whole batch, by replicate."""
        whole = self.paths(f"{labels}|{WHOLE}")
        return [difference(path(a), b, HIGHEST[labels]) for a, b in zip(results, whole, strict=True)]


def measure(experiment: Experiment) -> Outcome:
    """Compare the test loss at equal training loss, with noise of the batch's statistics and without."""
    replicates, precision = experiment.seeds(5, 20), precision_of_losses(experiment)
    trained = _trained(experiment, replicates)
    values = {
        arm: trained.differences(arm.partition("|")[0], results)
        for arm, results in trained.found.items()
        if not arm.endswith(f"|{WHOLE}")
    }
    effects = {
        arm: CRITERION.effect(f"{arm.replace('|', ': ')} minus {WHOLE}", of_arm, precision)
        for arm, of_arm in values.items()
    }
    # At the learning rates of the whole batch: whether the effect comes from the noise or from the learning rate.
    equal = [
        CRITERION.effect(
            f"{labels}: {GHOST} at the other's learning rates", trained.differences(labels, results), precision
        )
        for labels, results in trained.equal.items()
    ]
    clean, wrong = (effects[f"{labels}|{GHOST}"] for labels in REGIMES)
    doses = {dose: values[f"clean|{kind}"] for kind, dose in GHOSTS.items()}
    line = CRITERION.effect(
        "clean: line through all ghost sizes, at 8 images", at_dose(doses, GHOSTS[GHOST]), precision
    )
    more = CRITERION.effect(
        f"clean: {GHOST} minus {SMALLEST_DOSE}",
        differences(values[f"clean|{GHOST}"], values[f"clean|{SMALLEST_DOSE}"]),
        precision,
    )
    same = _equivalent(trained, values, precision)
    room = _room(trained)
    regimes: dict[str, Verdict] = {
        labels: effects[f"{labels}|{GHOST}"].verdict if room.holds and trained.comparable(labels) else "no room here"
        for labels in REGIMES
    }
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=(
            "the network does not fit its training images well enough for noise to have something to regularize"
            if set(regimes.values()) == {"no room here"}
            else _sentence((clean, wrong), equal, line, same, _rates(trained)[-1])
        ),
        effects=[
            clean, wrong, *equal, line, more, *([same] if same else []),
            *(effect for arm, effect in effects.items() if not arm.endswith(f"|{GHOST}")),
        ],
        room=room,
        pictures=[
            bars(
                "Test loss at equal training loss, minus that of BatchNorm over the whole batch",
                "Below 0: the noise helps. 95 % interval over replicates.",
                "regime and arm",
                Axis("difference of test losses"),
                list(effects.values()),
            ),
            _dose(effects),
            *(_paths(labels, trained) for labels in REGIMES),
        ],
        tables=[_table(trained)],
        settings=f"{len(replicates)} replicates, {IMAGES} images",
        regimes=regimes,
        trials=experiment.trials,
    )  # fmt: skip


def _sentence(
    ghost: tuple[Effect, Effect], equal: Sequence[Effect], line: Effect, same: Effect | None, highest: float
) -> str:
    """Say what noise does with clean and with wrong labels, and which Dropout does as much."""
    clean, wrong = ghost
    dropout = "no rate of Dropout tried has this effect"
    if same is not None:
        dropout = f"the equivalent Dropout rate is {same.value:.2f} [{same.low:.2f}, {same.high:.2f}]"
        dropout += ", the highest tried" if same.high >= highest else ""
    return (
        f"at equal training loss statistics of 8 images change the test loss by {clean.value:+.3f} "
        f"[{clean.low:.3f}, {clean.high:.3f}] with clean labels ({clean.verdict}), {wrong.value:+.3f} "
        f"[{wrong.low:.3f}, {wrong.high:.3f}] with 20 % wrong ones ({wrong.verdict}); at equal learning rates "
        f"{equal[0].value:+.3f} and {equal[1].value:+.3f}; a line through all ghost sizes gives {line.value:+.3f} "
        f"[{line.low:.3f}, {line.high:.3f}] at 8 images; {dropout}"
    )


def _trained(experiment: Experiment, replicates: Sequence[int]) -> Trained:
    """Run every arm at its best learning rates, and the ghost batch of 8 also at those of the whole batch."""
    dropouts = (0.1, 0.3) if experiment.quick else (0.05, 0.1, 0.2, 0.3)
    kinds: dict[str, tuple[str, float]] = {WHOLE: ("batch", 0.0)}
    kinds |= {named(f"ghost:{size}"): (f"ghost:{size}", 0.0) for size in SIZES}
    kinds |= {f"Dropout of {rate:g}": ("batch", rate) for rate in dropouts}
    arms = {
        f"{labels}|{kind}": {
            **RECIPE,
            "network": experiment.mlp(2, **dropout_of(rate)),
            "norm": norm,
            "batch_size": BATCH,
            "steps": 200 if experiment.quick else 400,
            "images": IMAGES,
            "label_noise": share,
            "curve": 20 if experiment.quick else 10,
        }
        for labels, share in REGIMES.items()
        for kind, (norm, rate) in kinds.items()
        if labels == "clean" or kind in (WHOLE, GHOST)
    }
    chosen = choose_rates(experiment, arms, replicates, final_loss)

    def at_the_others(labels: str, replicate: int) -> Any:
        exponent = chosen[f"{labels}|{WHOLE}"].exponents[replicates.index(replicate)]
        return experiment.train(**arms[f"{labels}|{GHOST}"], report="test", rate=2.0**exponent, seed=replicate)

    return Trained(kinds, chosen, experiment.grid(list(REGIMES), replicates, at_the_others))


def _rates(trained: Trained) -> list[float]:
    return sorted(rate for _, rate in trained.kinds.values() if rate)


def _equivalent(trained: Trained, values: Mapping[str, Sequence[float]], precision: Precision) -> Effect | None:
    """Return the equivalent Dropout rate as a reported effect; None where no rate tried has the effect."""
    by_rate = {rate: values[f"clean|Dropout of {rate:g}"] for rate in _rates(trained)}
    found = equivalent_dropout(values[f"clean|{GHOST}"], by_rate, precision)
    if found is None:
        return None
    name = f"clean: Dropout rate equivalent to {GHOST}"
    return Effect(name, *found, "share dropped", (0.0, 0.0), 0.0, "reported", len(values[f"clean|{GHOST}"]))


def _room(trained: Trained) -> Room:
    """Judge whether the network fits its training images better than it generalizes."""
    arm = f"clean|{WHOLE}"
    lowest_training = mean(points[-1][0] for points in trained.paths(arm) if points)
    fits = max(lowest_training / mean(lowest_loss(result) for result in trained.found[arm]), 0.0)
    return Room(
        fits < 1 / 3, f"lowest training loss over lowest test loss with the whole batch's statistics: {fits:.3f}"
    )


def _dose(effects: Mapping[str, Effect]) -> Picture:
    """Draw the response to the dose of noise, clean labels."""
    mine = [effects[f"clean|{kind}"] for kind in GHOSTS]
    return Picture(
        "Dose and response of the batch's noise, clean labels",
        "Difference of test losses at equal training loss over 1/n − 1/64, the variance of the noise of ghost batches "
        "of n images in units of the activations' own. 95 % interval over replicates.",
        "line",
        Axis("1/n − 1/64"),
        Axis("difference of test losses"),
        [
            Series(
                "ghost batches",
                [0.0, *reversed(GHOSTS.values())],
                [0.0, *(effect.value for effect in reversed(mine))],
                [0.0, *(effect.low for effect in reversed(mine))],
                [0.0, *(effect.high for effect in reversed(mine))],
            )
        ],
    )


def _paths(labels: str, trained: Trained) -> Picture:
    """Draw the first replicate's path through (training loss, test loss)."""
    series = [
        Series(kind, [train for train, _ in points], [test for _, test in points])
        for kind in trained.kinds
        if f"{labels}|{kind}" in trained.chosen and (points := trained.paths(f"{labels}|{kind}")[0])
    ]
    return Picture(
        f"Test loss against training loss, {labels}",
        "One replicate; training goes from right to left. Lower is better generalization at the same fit.",
        "line",
        Axis("training loss", log=True),
        Axis("test loss", log=True),
        series,
    )


def _table(trained: Trained) -> Table:
    rows = [
        [
            *name.split("|"),
            trained.chosen[name].rate,
            mean(lowest_loss(result) for result in results),
            mean(points[-1][0] for points in trained.paths(name) if points),
        ]
        for name, results in trained.found.items()
    ]
    columns = ["regime", "arm", "learning rate", "lowest test loss", "training loss at the end"]
    return Table("Losses, mean over replicates", columns, rows)
