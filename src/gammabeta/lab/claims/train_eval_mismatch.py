"""The mismatch between training and evaluation is usually small.

Question: Does the accuracy change when the moving averages are replaced by the final network's own statistics?

Claim: Moving averages are approximations and may not match the final network, but in practice the effect is usually
small.

Criterion: Test accuracy with recalibrated statistics minus that with the moving averages, in percentage points, paired
by replicate, lies within 1. A regime is supported if the whole interval does, and contradicted if none of it does. The
regimes are those in which a mismatch is to be expected, beside the usual one: batches of 2; running statistics of
momentum 0.01; one epoch; one epoch with momentum 0.01; and images that are shifted in use.

Room: With recalibrated statistics every network exceeds three times the accuracy of chance in its usual regime. A
network that has learned nothing has no accuracy to lose. Recalibration also changes its loss: a network without running
statistics has no mismatch.

Method: The recipe: SGD with momentum 0.9, 5 % warm-up, half a cosine to 0, decay 5e-4 on weights; 20 epochs of batches
of 32 and running statistics of momentum 0.1 unless the regime says otherwise. Every replicate draws its own split and
chooses its learning rate on its own validation split by the error with moving averages, as one would before deploying.
Recalibrated statistics are those of 256 training images under the final weights, layer by layer. In the regime of
shifted images test images get normal noise of 1 standard deviation, and recalibration takes training images with such
noise: unlabelled images from where the network is used. Batches of 2 are trained as in small_batch. The gap is the
root mean square over channels of the running mean minus the recalibrated one, in standard deviations.

Settings: Quick: MLP of 2 layers of 64 (or the user's model), 6 replicates. Full: also the small ResNet, 16 replicates.

Sources: Ioffe & Szegedy 2015, algorithm 2 (arXiv 1502.03167); Wu & Johnson 2021, Rethinking "Batch", section 3
(2105.07576); Singh & Shrivastava 2019, EvalNorm (1904.06031)

Known: Singh & Shrivastava: statistics corrected for evaluation gain several points at batches of 2, and little at 32.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from gammabeta.lab.answers import precision_of
from gammabeta.lab.claims import small_batch
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images import mismatch_together
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.training import POPULATION, chance
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import deployed
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

BATCH, EPOCHS = 32, 20
MARGIN = (-1.0, 1.0)
COARSE = (-5, -3)
# name: momentum of the running statistics, epochs
WAYS = {
    "usual": (0.1, EPOCHS),
    "momentum 0.01": (0.01, EPOCHS),
    "one epoch": (0.1, 1),
    "one epoch, momentum 0.01": (0.01, 1),
}
USUAL, SMALL, SHIFTED = "usual", "batches of 2", "shifted images"
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="within")
Key = tuple[str, str]  # network, regime
Runs = dict[Key, list[dict[str, Any]]]  # one result per replicate


@versioned(2, together="gammabeta.lab.images.mismatch_together")
def mismatch(**settings: Any) -> dict[str, Any]:
    """Train by the recipe, and evaluate with moving averages and recalibrated.

    Args:
        settings: task, network, momentum (of the running statistics), batch_size, steps, rate, seed, report.

    Returns:
        ``error``, ``loss``, ``moving_error``, ``moving_loss``, ``validation``, ``wrong``, ``moving_wrong`` as
        `gammabeta.lab.images.training.train` returns them; the same on shifted images under ``shifted``; and ``gaps``,
        each layer's gap.
    """
    return mismatch_together.mismatch([settings])[0]


def networks(experiment: Experiment) -> list[Mapping[str, Any]]:
    """Return the networks to measure."""
    if experiment.quick:
        return [experiment.convolutional if experiment.user else experiment.mlp(2)]
    return [experiment.mlp(2), experiment.convolutional]


def measure(experiment: Experiment) -> Outcome:
    """Compare the accuracy with recalibrated statistics and with moving averages in each regime."""
    seeds = experiment.seeds(6, 16)
    found = _runs(experiment, seeds)
    gains = {f"{network}, {regime}": of for (network, regime), of in found.items()}
    each = [_effect(experiment, name, results) for name, results in gains.items()]
    verdicts = {effect.name: effect.verdict for effect in each}
    rooms = _rooms(experiment, found)
    regimes: dict[str, Verdict] = {
        f"{network}, {regime}": verdicts[f"{network}, {regime}"] if rooms[network].holds else "no room here"
        for network, regime in found
    }
    room = Room(any(of.holds for of in rooms.values()), "; ".join(of.control for of in rooms.values()))
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence(each),
        effects=each,
        room=room,
        pictures=[
            bars(
                "Accuracy with recalibrated statistics minus that with moving averages",
                "Above 0: the moving averages cost accuracy. 95 % interval over replicates.",
                "network and regime",
                Axis("difference", "percentage points"),
                each,
            ),
            _gaps(found),
        ],
        tables=[_table(found)],
        settings=f"{len(seeds)} replicates, {EPOCHS} epochs",
        regimes=regimes,
        trials=experiment.trials,
    )


def _runs(experiment: Experiment, seeds: Sequence[int]) -> Runs:
    """Run every network in every regime, each replicate at the learning rate that it chose."""

    def trial(arm: Mapping[str, Any], exponent: int, replicate: int, report: str) -> Trial:
        own = {"task": experiment.drawn(replicate), "rate": 2.0**exponent, "seed": replicate, "report": report}
        return Trial(f"{__name__}:mismatch", {**arm, **own})

    per_epoch = len(experiment.task.train) // BATCH
    arms: dict[Key, dict[str, Any]] = {}
    for network in networks(experiment):
        for way, (momentum, epochs) in WAYS.items():
            arms[describe(network), way] = {
                "network": dict(network), "momentum": momentum, "batch_size": BATCH, "steps": epochs * per_epoch,
            }  # fmt: skip
    chosen = choose_rates(experiment, arms, seeds, deployed, COARSE, trial)
    small = _small(experiment, seeds)
    found: Runs = {}
    for key, of_key in chosen.items():
        found[key] = of_key.results
        if key[1] == USUAL:
            found[key[0], SHIFTED] = [result["shifted"] for result in of_key.results]
            if key[0] in small:
                found[key[0], SMALL] = small[key[0]].results
    return found


def _small(experiment: Experiment, seeds: Sequence[int]) -> dict[str, Chosen]:
    """Return the runs on batches of 2 by network; these trials are small_batch's."""
    arms = {
        cell[0]: settings
        for plan in small_batch.plans(experiment)
        for cell, settings in plan.arms(experiment).items()
        if cell[1:] == ("batch", 2)
    }
    return choose_rates(experiment, arms, seeds, deployed, small_batch.COARSE)


def _effect(experiment: Experiment, name: str, results: Sequence[Mapping[str, Any]]) -> Effect:
    """Judge what recalibration changes; both evaluations are of the same networks."""
    task = experiment.task
    values = [100 * (result["moving_error"] - result["error"]) for result in results]
    precision = precision_of(results, results, len(task.test), len(task.train), ("moving_wrong", "wrong"))
    return CRITERION.effect(name, values, precision)


def _rooms(experiment: Experiment, found: Runs) -> dict[str, Room]:
    """Judge by its usual regime whether a network has an accuracy to lose, and running statistics to lose it by."""
    least, rooms = 3 * chance(experiment.task), {}
    for (network, regime), runs in found.items():
        if regime == USUAL:
            accuracy = 1 - mean(run["error"] for run in runs)
            moved = max(abs((run["moving_loss"] or 0.0) - (run["loss"] or 0.0)) for run in runs)
            rooms[network] = Room(
                accuracy > least and moved > 0,
                f"{network}, usual: recalibrated accuracy {accuracy:.2f}, above {least:.2f}; recalibration changes the "
                f"loss by up to {moved:.2g}",
            )
    return rooms


def _sentence(each: Sequence[Effect]) -> str:
    return "recalibrating changes the accuracy, in points: " + ", ".join(
        f"{e.name} {e.value:+.1f} [{e.low:.1f}, {e.high:.1f}] ({e.verdict})" for e in each
    )


def _gaps(found: Runs) -> Picture:
    return Picture(
        "Gap of the running means by layer",
        "Root mean square over channels of the running mean minus the recalibrated one, in standard deviations; mean "
        f"over replicates. Sampling explains about {POPULATION**-0.5:.3f}.",
        "line",
        Axis("BatchNorm, in the order of the data"),
        Axis("gap of the mean", "standard deviations"),
        [
            series
            for (network, regime), runs in found.items()
            if (series := _by_layer(f"{network}, {regime}", [run.get("gaps", []) for run in runs]))
        ],
    )


def _by_layer(name: str, gaps: Sequence[Sequence[float]]) -> Series | None:
    """Draw each layer's mean gap over the replicates that have one."""
    known = [of_run for of_run in gaps if of_run]
    if not known:
        return None
    layers = list(zip(*known, strict=True))
    return Series(name, list(range(1, len(layers) + 1)), [mean(of_layer) for of_layer in layers])


def _table(found: Runs) -> Table:
    return Table(
        "Test error, %, mean over replicates",
        ["network", "regime", "moving averages", "recalibrated"],
        [
            [network, regime, *(100 * mean(run[key] for run in runs) for key in ("moving_error", "error"))]
            for (network, regime), runs in found.items()
        ],
    )
