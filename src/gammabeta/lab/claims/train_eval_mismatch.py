"""Moving averages only approximate the final network's statistics.

Question: Does the accuracy change when the moving averages are replaced by the final network's own statistics?

Claim: Moving averages lag behind the weights and remember noisy batches, so that evaluation with them differs from
evaluation with the trained network's statistics.

Criterion: Test accuracy with recalibrated statistics minus that with the moving averages, in percentage points, paired
by seed, is above 1. Each network at each learning rate is a regime. The gap between running and recalibrated
statistics, beyond what sampling explains, is reported by layer.

Room: With recalibrated statistics every network exceeds three times the accuracy of chance in its best regime.

Method: SGD, batches of 32, momentum 0.1 and at least 10/0.1 steps, so that no average still depends on its initial
value. The learning rates are each network's best by the recalibrated validation error on a separate seed, and four
times that. Recalibrated statistics are those of 256 training images under the final weights, layer by layer. The gap is
that of `gammabeta.train_eval_gap` on the training images: the root mean square over channels of the mean's shift, in
standard deviations.

Settings: MLP of 2 layers and the small ResNet (or the user's model); 200 steps and 4 seeds (quick), 400 steps and 10
seeds (full).

Sources: Ioffe & Szegedy 2015, algorithm 2 (arXiv 1502.03167); Wu & Johnson 2021, Rethinking "Batch", section 3
(2105.07576)

Known: In a pilot run a ResNet at a learning rate of 0.5 went from 82.3 to 87.2 %; at 0.1 nothing changed.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from torch import nn

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.task import Split
from gammabeta.lab.images.training import POPULATION, Training, chance, error_and_loss, exact_statistics, fit
from gammabeta.lab.interval import Precision
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import error_then_loss, tune
from gammabeta.lab.verdict import over_regimes

EXACT = False
KIND = "images"

BATCH = 32
MARGIN = (-1.0, 1.0)
LARGER = 2  # exponents of 2 above the best learning rate
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="above")
Runs = dict[str, list[dict[str, Any]]]  # regime -> one result per seed


@versioned(1)
def mismatch(
    *, task: Mapping[str, Any], network: Mapping[str, Any], rate: float, steps: int, seed: int, report: str
) -> dict[str, Any]:
    """Train; return the errors with moving averages and recalibrated, and each layer's gap.

    A gap is (layer, shift of the mean, its sampling error).
    """
    data = load(task)
    training = Training(network=network, norm="batch", rate=rate, batch_size=BATCH, steps=steps, seed=seed)
    fitted = fit(data, data.train, training)
    if fitted.diverged is not None:
        return {"error": 1.0, "loss": None, "moving_error": 1.0, "gaps": []}
    model = fitted.model.eval()
    split: Split = getattr(data, report)
    moving_error, _ = error_and_loss(model, split)
    with exact_statistics(model, data.train.x_nchw[:POPULATION]):
        error, loss = error_and_loss(model, split)
    gaps = []
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        found = gb.train_eval_gap(model, data.train.x_nchw[: 4 * POPULATION].split(POPULATION))
        gaps = [
            (layer.name, layer.gap.mean_shift, layer.gap.mean_error) for layer in found.layers if layer.gap is not None
        ]
    return {"error": error, "loss": loss, "moving_error": moving_error, "gaps": gaps}


def measure(experiment: Experiment) -> Outcome:
    """Compare the accuracy with recalibrated statistics and with moving averages in each regime."""
    seeds = experiment.seeds(4, 10)
    steps = 200 if experiment.quick else 400
    found = _runs(experiment, seeds, steps)
    gains = {name: [100 * (r["moving_error"] - r["error"]) for r in of_name] for name, of_name in found.items()}
    precision = Precision(samples=len(experiment.task.test))
    each = [CRITERION.effect(name, values, precision) for name, values in gains.items()]
    regimes = {effect.name: effect.verdict for effect in each}
    best = list(found)[::2]  # each network's best rate comes before its larger one
    accuracy = min(1 - median(r["error"] for r in found[name]) for name in best)
    least = 3 * chance(experiment.task)
    room = Room(
        accuracy > least, f"recalibrated accuracy at best learning rates at least {accuracy:.2f}, above {least:.2f}"
    )
    beyond = {
        name: mean(shift / error for run in of_name for _, shift, error in run["gaps"])
        for name, of_name in found.items()
        if any(run["gaps"] for run in of_name)
    }
    return Outcome(
        verdict=over_regimes(list(regimes.values())) if room.holds else "no room here",
        sentence=_sentence(each, max(beyond.values(), default=0.0)),
        effects=each,
        room=room,
        pictures=[
            bars(
                "Accuracy with recalibrated statistics minus that with moving averages",
                "Above 0: the moving averages cost accuracy. 95 % interval over seeds.",
                "network and learning rate",
                Axis("difference", "percentage points"),
                each,
            ),
            _gaps(found),
        ],
        tables=[_table(found, beyond)],
        settings=f"{len(seeds)} seeds, {steps} steps",
        regimes=regimes,
        trials=experiment.trials,
    )


def _runs(experiment: Experiment, seeds: Sequence[int], steps: int) -> Runs:
    """Run every network at its best learning rate and at the larger one."""
    networks = [experiment.mlp(2), experiment.convolutional]
    base = {"task": dict(experiment.source), "steps": steps}

    def trial(network: Mapping[str, Any], exponent: int, seed: int, report: str) -> Trial:
        settings = {**base, "network": dict(network), "rate": 2.0**exponent, "seed": seed, "report": report}
        return Trial(f"{__name__}:mismatch", settings)

    best = tune(
        experiment,
        networks,
        error_then_loss,
        make=lambda network, exponent: trial(network, exponent, experiment.tuning_seed, "validation"),
    )
    regimes = {
        f"{describe(network)}, learning rate {2.0**exponent:g}": (network, exponent)
        for network, at_best in zip(networks, best, strict=True)
        for exponent in (at_best, at_best + LARGER)
    }
    return experiment.grid(list(regimes), seeds, lambda name, seed: trial(*regimes[name], seed, "test"))


def _sentence(each: Sequence[Effect], most: float) -> str:
    return (
        "recalibrating changes the accuracy, in points: "
        + ", ".join(f"{e.name} {e.value:+.1f} [{e.low:.1f}, {e.high:.1f}] ({e.verdict})" for e in each)
        + f"; running means are off by at most {most:.1f} sampling errors"
    )


def _gaps(found: Runs) -> Picture:
    sampling = max((error for runs in found.values() for run in runs for _, _, error in run["gaps"]), default=0.0)
    return Picture(
        "Gap of the running means by layer",
        "Root mean square over channels of the shift of the mean, in standard deviations; mean over seeds. "
        f"Sampling explains at most {sampling:.3f}.",
        "line",
        Axis("BatchNorm, in the order of the data"),
        Axis("shift of the mean", "standard deviations"),
        [series for name, runs in found.items() if (series := _by_layer(name, runs))],
    )


def _by_layer(name: str, runs: list[dict[str, Any]]) -> Series | None:
    """Draw each layer's mean gap over the seeds in which all layers have one."""
    of_seed = [[shift for _, shift, _ in run["gaps"]] for run in runs]
    most = max(map(len, of_seed))
    whole = [shifts for shifts in of_seed if len(shifts) == most]
    if not most:
        return None
    return Series(name, list(range(1, most + 1)), [mean(of_layer) for of_layer in zip(*whole, strict=True)])


def _table(found: Runs, beyond: Mapping[str, float]) -> Table:
    return Table(
        "Test error, %, mean over seeds",
        ["network and learning rate", "moving averages", "recalibrated", "gap in sampling errors, mean over layers"],
        [
            [
                name,
                100 * mean(run["moving_error"] for run in runs),
                100 * mean(run["error"] for run in runs),
                beyond.get(name),
            ]
            for name, runs in found.items()
        ],
    )
