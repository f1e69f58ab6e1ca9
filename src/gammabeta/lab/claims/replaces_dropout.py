"""With BatchNorm Dropout gains less in a convolutional network, and Dropout before BatchNorm shifts the variance.

Question: How much does Dropout gain with BatchNorm and without, and what does it do to the variance that BatchNorm
sees?

Claim: With BatchNorm Dropout's gain is smaller, in convolutional networks above all; where Dropout stands before a
BatchNorm, the variance in training differs from that in evaluation.

Criterion: Two conditions. Dropout's gain in test accuracy, in percentage points, without BatchNorm minus with it,
paired by replicate, is above 1. The variance of a BatchNorm's input in training over that in evaluation, with Dropout
before it, is above 1.1. Supported if both hold, contradicted if one is decided the other way. The measured ratio over
the derived one is reported, and should be 1.

Room: Without BatchNorm Dropout's gain is above 1 point, by its whole interval: what gains nothing cannot be replaced.

Method: A small convolutional network: two convolutions, a hidden linear layer and a classifier, with Dropout before
both linear layers as in VGG. Few training images, so that there is something to overfit. The recipe: SGD with momentum
0.9, 5 % warm-up, half a cosine to 0, decay 5e-4 on weights. Every replicate draws its own split and images, and chooses
the learning rate of each arm and the rate of Dropout on its own validation split. Evaluation uses exact statistics.

Dropout at rate p of a unit x with mean μ and variance σ² multiplies it by m/(1 − p), where m is 1 with probability
1 − p and otherwise 0. Its variance in training is then E[x²]/(1 − p) − μ². The ratio to σ² is
(1 + μ²/σ²)/(1 − p) − μ²/σ². It is 2.47 at p = 0.5 for relu of a standard normal, where μ²/σ² = 1/(π − 1) = 0.467. After
a linear layer with weights w it is 1 + p/(1 − p)·Σ w²·E[x²] / Var(w·x). The ratio is measured on the trained networks,
as a geometric mean over channels, on the same images in training mode and in evaluation with exact statistics.

Settings: batches of 32. Quick: 150 images, 40 epochs, Dropout of 0.3, 6 replicates. Full: 300 images, 60 epochs,
Dropout of 0.1, 0.3 and 0.5, 32 replicates.

Sources: Ioffe & Szegedy 2015, section 4.2.1 (arXiv 1502.03167); Li et al. 2019, Understanding the Disharmony between
Dropout and Batch Normalization by Variance Shift (1801.05134)

Known: Ioffe & Szegedy removed Dropout from Inception when they added BatchNorm, and lost no accuracy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from gammabeta.lab.answers import precision_of
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images import dropout_together
from gammabeta.lab.interval import Precision
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Room, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import error_then_loss
from gammabeta.lab.verdict import weakest

EXACT = False
KIND = "images"

BATCH = 32
QUICK, FULL = (150, 40), (300, 60)  # images, epochs
ARMS = ("none", "batch")
MARGIN = (-1.0, 1.0)
RATIO = (1 / 1.1, 1.1)
COARSE = (-5, -3)
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="above")
SHIFT = Criterion(unit="times the variance", margin=RATIO, direction="above", null=1.0, ratio=True)
DERIVED = Criterion(unit="times the derived ratio", margin=RATIO, direction="within", null=1.0, ratio=True)
Arm = tuple[str, float]  # norm, rate of Dropout


@versioned(2, together="gammabeta.lab.images.dropout_together")
def dropped(**settings: Any) -> dict[str, Any]:
    """Train the network with Dropout by the recipe.

    Args:
        settings: task, norm, dropout, images, batch_size, steps, rate, seed, report.

    Returns:
        ``error``, ``loss``, ``moving_error``, ``moving_loss``, ``validation``, ``wrong``, ``moving_wrong`` as
        `gammabeta.lab.images.training.train` returns them; ``train_loss``; and ``log_ratios``, those of
        :func:`gammabeta.lab.images.dropout_together.variance_ratios` where BatchNorm follows Dropout.
    """
    return dropout_together.dropped([settings])[0]


def derived_ratio(mean_of_x: float, variance: float, dropout: float) -> float:
    """Compute the variance of a unit after Dropout over that before it: (1 + μ²/σ²)/(1 − p) − μ²/σ².

    Args:
        mean_of_x: μ of the unit.
        variance: σ² of the unit, divided by the count.
        dropout: p, the probability of dropping it.

    Source: Li et al. 2019, section 3.
    """
    relative = mean_of_x**2 / variance
    return (1 + relative) / (1 - dropout) - relative


@dataclass(frozen=True)
class Gains:
    """What Dropout gains with one norm.

    Attributes:
        without, within: the results without Dropout and with it at the rate that each replicate chose.
        rates: those rates.
    """

    without: list[dict[str, Any]]
    within: list[dict[str, Any]]
    rates: list[float]

    @property
    def points(self) -> list[float]:
        return differences(*([100 * result["error"] for result in of] for of in (self.without, self.within)))


def gains_of(norm: str, chosen: Mapping[Arm, Chosen]) -> Gains:
    """Let each replicate choose the rate of Dropout by its validation split."""
    rates = [dropout for of_norm, dropout in chosen if of_norm == norm and dropout]
    without = chosen[norm, 0.0].results
    picked = [
        min(rates, key=lambda rate: error_then_loss(chosen[norm, rate].results[place]["validation"]))
        for place in range(len(without))
    ]
    return Gains(without, [chosen[norm, rate].results[place] for place, rate in enumerate(picked)], picked)


def measure(experiment: Experiment) -> Outcome:
    """Compare Dropout's gain with and without BatchNorm, and measure the variance that BatchNorm sees."""
    seeds = experiment.seeds(6, 32)
    chosen = _runs(experiment, seeds)
    gains = {norm: gains_of(norm, chosen) for norm in ARMS}
    own = [
        CRITERION.effect(f"Dropout's gain, {NORMS[norm]}", gains[norm].points, _precision(experiment, gains[norm]))
        for norm in ARMS
    ]
    less = CRITERION.effect(
        "Dropout's gain without BatchNorm minus that with it",
        differences(gains["none"].points, gains["batch"].points),
        _of_four(experiment, gains),
    )
    shift, derived = _ratios(gains["batch"].within)
    room = Room(
        own[0].verdict == "supported",
        f"Dropout's gain without BatchNorm is {own[0].value:+.1f} points [{own[0].low:.1f}, {own[0].high:.1f}], to be "
        f"above {MARGIN[1]:g}",
    )
    return Outcome(
        verdict=weakest([less.verdict, shift.verdict]) if room.holds else "no room here",
        sentence=(
            f"Dropout gains {own[0].value:+.1f} points [{own[0].low:.1f}, {own[0].high:.1f}] without and "
            f"{own[1].value:+.1f} [{own[1].low:.1f}, {own[1].high:.1f}] with BatchNorm, a difference of "
            f"{less.value:+.1f} [{less.low:.1f}, {less.high:.1f}] ({less.verdict}); before BatchNorm it makes the "
            f"variance {shift.value:.2f} times that of evaluation ({shift.verdict}), {derived.value:.3f} times what is "
            "derived"
        ),
        effects=[less, shift, derived, *own],
        room=room,
        pictures=[
            bars(
                "Dropout's gain in test accuracy",
                "Of the small convolutional network; 95 % interval over replicates.",
                "norm",
                Axis("gain", "percentage points"),
                [*own, less],
            )
        ],
        tables=[_table(chosen, gains)],
        settings=f"{len(seeds)} replicates, batches of {BATCH}",
        trials=experiment.trials,
    )


def _runs(experiment: Experiment, seeds: Sequence[int]) -> dict[Arm, Chosen]:
    images, epochs = QUICK if experiment.quick else FULL
    images = min(images, len(experiment.task.train))
    dropouts = (0.0, 0.3) if experiment.quick else (0.0, 0.1, 0.3, 0.5)

    def trial(arm: Mapping[str, Any], exponent: int, replicate: int, report: str) -> Trial:
        own = {"task": experiment.drawn(replicate), "rate": 2.0**exponent, "seed": replicate, "report": report}
        return Trial(f"{__name__}:dropped", {**arm, **own})

    base = {"images": images, "batch_size": BATCH, "steps": epochs * (images // BATCH)}
    arms: dict[Arm, dict[str, Any]] = {
        (norm, dropout): {"norm": norm, "dropout": dropout, **base} for norm in ARMS for dropout in dropouts
    }
    return choose_rates(experiment, arms, seeds, error_then_loss, COARSE, trial)


def _precision(experiment: Experiment, gains: Gains) -> Precision:
    return precision_of(gains.without, gains.within, len(experiment.task.test), len(experiment.task.train))


def _of_four(experiment: Experiment, gains: Mapping[str, Gains]) -> Precision:
    """Return the precision of a difference of two gains: the variances over a shared test set add up."""
    each = [_precision(experiment, of_norm) for of_norm in gains.values()]
    if any(one.variance is None for one in each):
        return each[0]
    return Precision(samples=each[0].samples, variance=sum(one.variance or 0.0 for one in each))


def _ratios(results: Sequence[Mapping[str, Any]]) -> tuple[Effect, Effect]:
    """Judge the measured ratio of variances, and the measured over the derived one."""
    known = [result["log_ratios"] for result in results if result["log_ratios"] is not None]
    pairs = known or [(0.0, 0.0)]
    return (
        SHIFT.effect("variance in training over that in evaluation, Dropout before BatchNorm", [m for m, _ in pairs]),
        DERIVED.effect("measured ratio of variances over the derived one", [m - d for m, d in pairs]),
    )


def _table(chosen: Mapping[Arm, Chosen], gains: Mapping[str, Gains]) -> Table:
    rows = [
        [
            NORMS[norm],
            dropout,
            of.rate,
            100 * (1 - mean(result["error"] for result in of.results)),
            mean(result["train_loss"] or 0.0 for result in of.results),
            gains[norm].rates.count(dropout),
        ]
        for (norm, dropout), of in chosen.items()
    ]
    columns = ["norm", "Dropout", "learning rate", "test accuracy, %", "training loss", "replicates that chose it"]
    return Table("Test accuracy, mean over replicates", columns, rows)
