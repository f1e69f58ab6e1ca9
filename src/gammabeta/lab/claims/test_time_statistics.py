"""On images unlike the training images, statistics of the test batch are better than the running ones.

Question: In evaluation, which statistics serve best: the running ones, those of the images at hand, or a mixture? From
how many images?

Claim: Running statistics make evaluation deterministic and independent of the batch. On corrupted images they are those
of other data, and statistics of the test batch are better, if it is large enough.

Criterion: Test error with the running statistics minus that with the statistics of 64 test images, in percentage
points, paired by replicate, is above 2. Each network and corruption is a regime.

Room: In the regime, the corruption costs the network with running statistics more than 2 points, on average.

Method: Networks with BatchNorm are trained by the recipe: SGD with momentum 0.9, 5 % warm-up, half a cosine to 0, decay
5e-4 on weights; batches of 32, 20 epochs. Every replicate draws its own split and chooses its learning rate on its own
validation split, by clean images and moving averages. The test images get normal noise of 1 standard deviation, a 3 × 3
mean filter, a rotation by 30 degrees, or half the contrast. They are shuffled and cut into batches of 1, 4, 16 and 64.
Each batch is normalized by statistics of its own, or by a mixture in which the running ones count as 16 images. Clean
images, all sizes and mixtures are reported beside the regimes. Noise is drawn by the replicate.

Settings: Quick: MLP of 2 layers of 64 (or the user's model), 6 replicates. Full: also the small ResNet, 12 replicates.

Sources: Schneider et al. 2020, Improving robustness against common corruptions by covariate shift adaptation (arXiv
2006.16971); Nado et al. 2020, Evaluating Prediction-Time Batch Normalization (2006.10963); Hendrycks & Dietterich 2019
(1903.12261)

Known: Schneider et al.: ResNet-50's mean corruption error falls from 76.7 to 62.2 % with full adaptation; a mixture
gains from a single image on, and batch statistics on their own from about 32.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images import test_time_together
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.test_time_together import CONDITIONS, PRIOR, SIZES
from gammabeta.lab.interval import Precision
from gammabeta.lab.outcome import Axis, Criterion, Effect, Line, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.procedure import choose_rates
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import deployed
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

BATCH, EPOCHS = 32, 20
MARGIN = (-2.0, 2.0)
COARSE = (-5, -3)
JUDGED = f"batch {max(SIZES)}"
STATISTICS = ("running", *(f"{kind} {size}" for kind in ("batch", "mixed") for size in SIZES))
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="above")
Errors = list[dict[str, dict[str, float]]]  # by condition and statistics, one per replicate


@versioned(1, together="gammabeta.lab.images.test_time_together")
def tested(**settings: Any) -> dict[str, Any]:
    """Train by the recipe, and test with each kind of statistics.

    Args:
        settings: task, network, norm, batch_size, steps, rate, seed.

    Returns:
        ``errors``: by condition (``"clean"`` or a corruption) and statistics: ``"running"``, and ``"batch n"`` and
        ``"mixed n"`` for batches of n. 1 where a loss was not finite in training.
    """
    return test_time_together.tested([settings])[0]


def networks(experiment: Experiment) -> list[Mapping[str, Any]]:
    """Return the networks to measure."""
    if experiment.quick:
        return [experiment.convolutional if experiment.user else experiment.mlp(2)]
    return [experiment.mlp(2), experiment.convolutional]


def measure(experiment: Experiment) -> Outcome:
    """Compare the errors with running statistics and with those of test batches."""
    seeds = experiment.seeds(6, 12)
    found = _runs(experiment, seeds)
    each, costs = {}, {}
    for network, errors in found.items():
        clean = mean(_percents(errors, "clean", "running"))
        for condition in CONDITIONS[1:]:
            name = f"{network}, {condition}"
            costs[name] = mean(_percents(errors, condition, "running")) - clean
            each[name] = _effect(experiment, name, errors, condition)
    others = [_effect(experiment, f"{network}, clean", errors, "clean") for network, errors in found.items()]
    regimes: dict[str, Verdict] = {
        name: effect.verdict if costs[name] > MARGIN[1] else "no room here" for name, effect in each.items()
    }
    room = Room(
        any(cost > MARGIN[1] for cost in costs.values()),
        f"points that the corruption costs with running statistics, above {MARGIN[1]:g}: "
        + ", ".join(f"{name} {cost:.1f}" for name, cost in costs.items()),
    )
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence(each, others, regimes),
        effects=[*each.values(), *others],
        room=room,
        pictures=[
            bars(
                "Error with running statistics minus that with statistics of 64 test images",
                "Above 0: the test batch's statistics are better. 95 % interval over replicates.",
                "network and images",
                Axis("difference of errors", "percentage points"),
                [*each.values(), *others],
            ),
            *(_by_size(network, errors) for network, errors in found.items()),
        ],
        tables=[
            Table(
                "Test error by statistics, %, mean over replicates",
                ["network", "images", *STATISTICS],
                [
                    [network, condition, *(mean(_percents(errors, condition, of)) for of in STATISTICS)]
                    for network, errors in found.items()
                    for condition in CONDITIONS
                ],
            )
        ],
        settings=f"{len(seeds)} replicates, {EPOCHS} epochs",
        regimes=regimes,
        trials=experiment.trials,
    )


def _runs(experiment: Experiment, seeds: Sequence[int]) -> dict[str, Errors]:
    """Choose each replicate's learning rate, and test its network; group_norm_needs_no_sync shares the choice."""
    steps = EPOCHS * (len(experiment.task.train) // BATCH)
    arms = {
        describe(network): {"network": dict(network), "norm": "batch", "batch_size": BATCH, "steps": steps}
        for network in networks(experiment)
    }
    chosen = choose_rates(experiment, {name: {**arm, **RECIPE} for name, arm in arms.items()}, seeds, deployed, COARSE)

    def trial(name: str, replicate: int) -> Trial:
        rate = 2.0 ** chosen[name].exponents[seeds.index(replicate)]
        own = {"task": experiment.drawn(replicate), "rate": rate, "seed": replicate}
        return Trial(f"{__name__}:tested", {**arms[name], **own})

    results = experiment.grid(list(arms), seeds, trial)
    return {name: [result["errors"] for result in of] for name, of in results.items()}


def _percents(errors: Errors, condition: str, statistics: str) -> list[float]:
    return [100 * float(of_replicate[condition][statistics]) for of_replicate in errors]


def _effect(experiment: Experiment, name: str, errors: Errors, condition: str) -> Effect:
    """Judge what statistics of 64 test images gain over the running ones."""
    running, own = (_percents(errors, condition, of) for of in ("running", JUDGED))
    task = experiment.task
    precision = Precision(samples=len(task.test), trained_on=None if task.keeps_test else len(task.train))
    return CRITERION.effect(name, [one - other for one, other in zip(running, own, strict=True)], precision)


def _sentence(each: Mapping[str, Effect], others: Sequence[Effect], regimes: Mapping[str, Verdict]) -> str:
    def shown(e: Effect, verdict: Verdict) -> str:
        return f"{e.name} {e.value:+.1f} [{e.low:.1f}, {e.high:.1f}] ({verdict})"

    return (
        "points by which statistics of 64 test images lower the error below that of running ones: "
        + "; ".join(shown(effect, regimes[name]) for name, effect in each.items())
        + "; beside them "
        + "; ".join(shown(effect, effect.verdict) for effect in others)
    )


def _by_size(network: str, errors: Errors) -> Picture:
    series = [
        Series(
            f"{condition}, {'test batch' if kind == 'batch' else f'mixed with {PRIOR} images of running statistics'}",
            SIZES,
            [mean(_percents(errors, condition, f"{kind} {size}")) for size in SIZES],
            dash=kind == "mixed",
        )
        for condition in ("clean", "noise")
        for kind in ("batch", "mixed")
    ]
    lines = [
        Line("y", mean(_percents(errors, condition, "running")), f"running statistics, {condition}")
        for condition in ("clean", "noise")
    ]
    return Picture(
        f"{network}: test error by the number of test images",
        "Statistics of the test batch, on their own and mixed with the running ones; mean over replicates.",
        "line",
        Axis("images in the test batch", log=True),
        Axis("test error", "%"),
        series,
        lines,
    )
