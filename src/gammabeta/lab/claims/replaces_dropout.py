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
from collections.abc import Mapping
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.layers import dropout_of
from gammabeta.lab.images.training import POPULATION, exact_statistics, fit, subset
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Outcome, Room, Table, bars, measured
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


@versioned(1)
def variance_ratio(*, task: Mapping[str, Any], network: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """Log of the variance of the later BatchNorms' inputs in training over that in evaluation, mean over channels."""
    data = load(task)
    own = subset(data.train, IMAGES, data.classes, 0.0, seed)
    model = fit(
        data, own, network=network, norm="batch", rate=0.1, batch_size=BATCH, steps=steps, seed=seed
    ).model.train()
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


def measure(experiment: Experiment) -> Outcome:
    seeds = experiment.seeds(6, 64)
    steps = 400 if experiment.quick else 800
    dropouts = (0.3,) if experiment.quick else (0.1, 0.3, 0.5)
    arms = {
        f"{regime}|{norm}|{dropout:g}": {
            "network": experiment.mlp(3, **dropout_of(dropout)),
            "norm": norm,
            "batch_size": BATCH,
            "steps": steps,
            "images": IMAGES,
            "label_noise": share,
        }
        for regime, share in REGIMES.items()
        for norm in ARMS
        for dropout in (0.0, *dropouts)
    }
    several = experiment.tuning_seeds(2, 6)
    rates, found = at_best(experiment, arms, error_then_loss, seeds, tuning=several, report="test")
    tuned = iter(
        experiment.run(
            [
                experiment.train(**arm, rate=2.0 ** rates[name], seed=seed)
                for name, arm in arms.items()
                for seed in several
            ]
        )
    )
    score = {name: mean(error_then_loss(next(tuned)) for _ in several) for name in arms}
    accuracy = {name: [100 * (1 - result["error"]) for result in results] for name, results in found.items()}
    chosen = {(r, n): min(dropouts, key=lambda d: score[f"{r}|{n}|{d:g}"]) for r in REGIMES for n in ARMS}
    gains = {
        (r, n): [a - b for a, b in zip(accuracy[f"{r}|{n}|{chosen[r, n]:g}"], accuracy[f"{r}|{n}|0"], strict=True)]
        for r in REGIMES
        for n in ARMS
    }
    less = [
        measured(
            f"{regime}: Dropout's gain without less with BatchNorm",
            [a - b for a, b in zip(gains[regime, "none"], gains[regime, "batch"], strict=True)],
            unit="percentage points", margin=MARGIN, direction="above",
        )
        for regime in REGIMES
    ]  # fmt: skip
    own = [
        measured(
            f"{regime}: Dropout's gain, {NORMS[norm]}",
            values, unit="percentage points", margin=MARGIN, direction="above",
        )
        for (regime, norm), values in gains.items()
    ]  # fmt: skip
    trials = [
        Trial(
            f"{__name__}:variance_ratio",
            {
                "task": dict(experiment.source),
                "network": dict(experiment.mlp(3, dropout=RATIO_DROPOUT, dropout_at=place)),
                "steps": steps // 2,
                "seed": seed,
            },
        )
        for place in PLACES
        for seed in seeds
    ]
    results = iter(experiment.run(trials))
    ratios = {
        place: measured(
            f"variance in training over evaluation, Dropout {where}",
            [mean(next(results)["log_ratios"]) for _ in seeds],
            unit="times the variance", margin=RATIO, direction="above", null=1.0, ratio=True,
        )
        for place, where in PLACES.items()
    }  # fmt: skip
    train_loss = median(result["train_loss"] or math.inf for result in found["clean|none|0"])
    test_loss = median(result["loss"] or 0.0 for result in found["clean|none|0"])
    room = Room(
        train_loss < 0.5 * test_loss, f"without either: training loss {train_loss:.3f}, test loss {test_loss:.3f}"
    )
    clean, noisy = less
    before, after = ratios["every"], ratios["last"]
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
        tables=[
            Table(
                "Test accuracy, %, mean over seeds",
                ["labels", "norm", "Dropout", "rate", "accuracy", "chosen"],
                [
                    [r, NORMS[n], float(d), 2.0 ** rates[name], mean(accuracy[name]), chosen[r, n] == float(d)]
                    for name in arms
                    for r, n, d in [name.split("|")]
                ],
            )
        ],
        settings=f"{len(seeds)} seeds, {steps} steps",
        trials=experiment.trials,
    )
