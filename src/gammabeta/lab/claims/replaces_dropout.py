"""With BatchNorm Dropout gains less, and Dropout before BatchNorm shifts the variance.

Question: How much does Dropout gain with BatchNorm and without, and what does it do to the variance that BatchNorm
sees?

Claim: With BatchNorm Dropout's gain is smaller; where Dropout stands before a BatchNorm, the variance in training
differs from that in evaluation.

Criterion: Two conditions. Dropout's gain in test accuracy, in percentage points, without BatchNorm minus with it,
paired by seed, is above 1. The variance of a BatchNorm's input in training over that in evaluation, with Dropout before
it, is above 1.1. Supported if both hold, contradicted if one is decided the other way. The first rests on clean labels;
20 % wrong labels are reported as a separate effect, which the sentence names. The ratio with Dropout after the last
BatchNorm is reported too, and should be 1.

Room: Without either, the network's training loss is below half its test loss: it overfits, so that Dropout has
something to gain.

Method: An MLP, 300 training images, batches of 32, SGD, Dropout after each activation. Each arm's learning rate, and
the Dropout rate where several are tried, are tuned on two (quick) or six separate seeds. (The rates were tuned on one
seed at first; two sets of seeds then disagreed.) Evaluation uses exact statistics. The ratio is measured on trained
networks, in the BatchNorms after the first, as a geometric mean over channels. It compares training mode with
evaluation by exact statistics on the same images, so that Dropout is the only difference.

Settings: 3 layers of 64, relu. Quick: Dropout of 0.3, 400 steps, 6 seeds. Full: Dropout of 0.1, 0.3, 0.5, 800 steps, 64
seeds (16 and 40 at first, which was inconclusive). The ratio at Dropout of 0.5.

Sources: Ioffe & Szegedy 2015, section 4.2.1 (arXiv 1502.03167); Li et al. 2019, Understanding the Disharmony between
Dropout and Batch Normalization by Variance Shift (1801.05134)

Known: In a pilot run with clean labels the gain was 3.9 ± 1.8 without and 0.1 ± 0.8 with BatchNorm; with wrong labels
4.7 and 10.5; the ratio was 2.5 to 3.2.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.layers import dropout_of
from gammabeta.lab.images.training import POPULATION, Training, exact_statistics, fit, subset
from gammabeta.lab.interval import Precision
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Room, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import at_best, error_then_loss
from gammabeta.lab.verdict import weakest

EXACT = False
KIND = "images"

IMAGES, BATCH = 300, 32
REGIMES = {"clean": 0.0, "20 % wrong labels": 0.2}
ARMS = ("none", "batch")
MARGIN = (-1.0, 1.0)
RATIO = (1 / 1.1, 1.1)
RATIO_DROPOUT = 0.5
PLACES = {"every": "before BatchNorm", "last": "after the last BatchNorm"}
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="above")
Regime = tuple[str, str]  # labels, norm


# --- the trials ---


@versioned(1)
def variance_ratio(*, task: Mapping[str, Any], network: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """Return the log of the later BatchNorms' input variance in training over evaluation, mean over channels."""
    data = load(task)
    own = subset(data.train, IMAGES, data.classes, 0.0, seed)
    training = Training(network=network, norm="batch", rate=0.1, batch_size=BATCH, steps=steps, seed=seed)
    model = fit(data, own, training).model.train()
    torch.manual_seed(seed)
    later = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)][1:]
    x_nchw = own.x_nchw[:POPULATION]
    seen: list[list[Tensor]] = []

    def variances() -> None:
        found: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, given: found.append(given[0].double().var(dim=0)))
            for layer in later
        ]
        with torch.no_grad():
            model(x_nchw)
        for hook in hooks:
            hook.remove()
        seen.append(found)

    variances()
    with exact_statistics(model, x_nchw):
        variances()
    logs = []
    for training, evaluation in zip(*seen, strict=True):
        alive = evaluation > 1e-12
        logs.append(float(torch.log(training[alive] / evaluation[alive]).mean()))
    return {"log_ratios": logs}


# --- the claim ---


@dataclass(frozen=True)
class Trained:
    """The runs of every arm at its best learning rate; arms are named "labels|norm|Dropout".

    Attributes:
        rates: the exponent of each arm's learning rate.
        found: one result per seed, by arm.
        chosen: the best rate of Dropout.
    """

    rates: Mapping[str, int]
    found: Mapping[str, list[dict[str, Any]]]
    chosen: Mapping[Regime, float]

    def accuracy(self, arm: str) -> list[float]:
        return [100 * (1 - result["error"]) for result in self.found[arm]]

    def gain(self, labels: str, norm: str) -> list[float]:
        """Return the accuracy with Dropout at its chosen rate minus that without, in percentage points."""
        arm = f"{labels}|{norm}"
        return differences(self.accuracy(f"{arm}|{self.chosen[labels, norm]:g}"), self.accuracy(f"{arm}|0"))


def measure(experiment: Experiment) -> Outcome:
    """Compare Dropout's gain with and without BatchNorm, and measure the variance that BatchNorm sees."""
    seeds = experiment.seeds(6, 64)
    steps = 400 if experiment.quick else 800
    trained = _trained(experiment, seeds, steps)
    gains = {(labels, norm): trained.gain(labels, norm) for labels in REGIMES for norm in ARMS}
    precision = Precision(samples=len(experiment.task.test))
    less = [
        CRITERION.effect(
            f"{labels}: Dropout's gain without BatchNorm minus that with it",
            differences(gains[labels, "none"], gains[labels, "batch"]),
            precision,
        )
        for labels in REGIMES
    ]
    own = [
        CRITERION.effect(f"{labels}: Dropout's gain, {NORMS[norm]}", values, precision)
        for (labels, norm), values in gains.items()
    ]
    before, after = _variance_ratios(experiment, seeds, steps // 2)
    room = _room(trained.found["clean|none|0"])
    clean, noisy = less
    return Outcome(
        verdict=weakest([clean.verdict, before.verdict]) if room.holds else "no room here",
        sentence=(
            f"Dropout gains {mean(gains['clean', 'none']):+.1f} points without and "
            f"{mean(gains['clean', 'batch']):+.1f} with BatchNorm, a difference of {clean.value:+.1f} "
            f"[{clean.low:.1f}, {clean.high:.1f}] ({clean.verdict}); with 20 % wrong labels {noisy.value:+.1f} "
            f"[{noisy.low:.1f}, {noisy.high:.1f}] ({noisy.verdict}); before "
            f"BatchNorm it makes the variance {before.value:.2f} times that of evaluation, after the last one "
            f"{after.value:.2f}"
        ),
        effects=[clean, before, noisy, after, *own],
        room=room,
        pictures=[
            bars(
                "Dropout's gain in test accuracy",
                "95 % interval over seeds.",
                "regime and arm",
                Axis("gain", "percentage points"),
                [*own, *less],
            ),
            bars(
                "Variance of BatchNorm's input in training over that in evaluation",
                f"Dropout of {RATIO_DROPOUT:g}; 1 where Dropout stands after the last BatchNorm.",
                "place of Dropout",
                Axis("ratio of variances", log=True),
                [before, after],
            ),
        ],
        tables=[_table(trained)],
        settings=f"{len(seeds)} seeds, {steps} steps",
        trials=experiment.trials,
    )


def _trained(experiment: Experiment, seeds: Sequence[int], steps: int) -> Trained:
    """Tune each arm's learning rate, run every arm, and choose the rate of Dropout on the tuning seeds."""
    dropouts = (0.3,) if experiment.quick else (0.1, 0.3, 0.5)
    arms = {
        f"{labels}|{norm}|{dropout:g}": {
            "network": experiment.mlp(3, **dropout_of(dropout)),
            "norm": norm,
            "batch_size": BATCH,
            "steps": steps,
            "images": IMAGES,
            "label_noise": share,
        }
        for labels, share in REGIMES.items()
        for norm in ARMS
        for dropout in (0.0, *dropouts)
    }
    several = experiment.tuning_seeds(2, 6)
    rates, found = at_best(experiment, arms, error_then_loss, seeds, tuning=several, report="test")
    tuned = experiment.grid(
        list(arms), several, lambda name, seed: experiment.train(**arms[name], rate=2.0 ** rates[name], seed=seed)
    )
    score = {name: mean(error_then_loss(result) for result in results) for name, results in tuned.items()}
    regimes = [(labels, norm) for labels in REGIMES for norm in ARMS]
    chosen = {(r, n): min(dropouts, key=lambda d: score[f"{r}|{n}|{d:g}"]) for r, n in regimes}
    return Trained(rates, found, chosen)


def _variance_ratios(experiment: Experiment, seeds: Sequence[int], steps: int) -> tuple[Effect, Effect]:
    """Measure the ratio of variances with Dropout before BatchNorm, and after the last one."""

    def trial(place: str, seed: int) -> Trial:
        network = dict(experiment.mlp(3, dropout=RATIO_DROPOUT, dropout_at=place))
        settings = {"task": dict(experiment.source), "network": network, "steps": steps, "seed": seed}
        return Trial(f"{__name__}:variance_ratio", settings)

    before, after = (
        Criterion(unit="times the variance", margin=RATIO, direction="above", null=1.0, ratio=True).effect(
            f"variance in training over that in evaluation, Dropout {PLACES[place]}",
            [mean(result["log_ratios"]) for result in results],
        )
        for place, results in experiment.grid(list(PLACES), seeds, trial).items()
    )
    return before, after


def _room(plain: Sequence[Mapping[str, Any]]) -> Room:
    """Judge whether the network without BatchNorm and Dropout overfits."""
    train_loss = median(result["train_loss"] or math.inf for result in plain)
    test_loss = median(result["loss"] or 0.0 for result in plain)
    return Room(
        train_loss < 0.5 * test_loss, f"without either: training loss {train_loss:.3f}, test loss {test_loss:.3f}"
    )


def _table(trained: Trained) -> Table:
    rows = []
    for name in trained.found:
        labels, norm, dropout = name.split("|")
        chosen = trained.chosen[labels, norm] == float(dropout)
        rate, accuracy = 2.0 ** trained.rates[name], mean(trained.accuracy(name))
        rows.append([labels, NORMS[norm], float(dropout), rate, accuracy, chosen])
    columns = ["labels", "norm", "Dropout", "learning rate", "accuracy", "chosen"]
    return Table("Test accuracy, %, mean over seeds", columns, rows)
