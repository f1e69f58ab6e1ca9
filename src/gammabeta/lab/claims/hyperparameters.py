"""BatchNorm makes training less sensitive to hyperparameters.

Question: How much does the test error depend on learning rate, momentum, weight decay and warm-up, with BatchNorm and
without?

Claim: With BatchNorm a network is more robust to its hyperparameters: over a grid of them its results spread less.

Criterion: An arm's spread is the mean of its test errors over the grid minus the lowest one, in percentage points: what
an average setting of the grid loses against the best one. The effect is the spread without BatchNorm minus that with
it, paired by replicate, above 1 point. Each network is a regime.

Room: A network is judged where its spread without BatchNorm is above 1 point in the median of the replicates.

Method: The grid has three values of each hyperparameter: learning rates of ½, 1 and 2 times the arm's own centre,
momentum of 0.8, 0.9 and 0.95, weight decay of 0, 5·10⁻⁴ and 5·10⁻³, and warm-up over 0, 5 and 20 % of the steps. Nine
of the 81 settings are tried, Taguchi's orthogonal array L9, in which every two values of two hyperparameters meet
exactly once. So the mean over the three settings of one value is comparable with that of another. The centre is the
learning rate that the replicate chose for the arm, with the middle values of the others, by its own validation error
among ½, 1 and 2 times a rate that a search on three further replicates found: neither arm is favoured by where its grid
lies, and the luck of that choice is within the interval. SGD, half a cosine to 0, batches of 128, 20 epochs. A run
whose loss is not finite counts with the error of chance. Errors are by exact statistics.

Settings: Quick: MLP of 4 layers of 64, relu, matched initialization, and the user's model, 5 replicates. Full: also 12
layers and the small ResNet, 16 replicates.

Sources: Ioffe & Szegedy 2015 (arXiv 1502.03167); Santurkar et al. 2018, section 3 (1805.11604); Bouthillier et al.
2021, Accounting for Variance in Machine Learning Benchmarks (2103.03098)

Known: Santurkar et al. state the robustness to hyperparameters as an effect of the smoother landscape, and show it for
learning rates. Nobody is known to have measured it over several hyperparameters at once.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from gammabeta.lab.answers import precision_of
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.training import chance
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.trials.trial import Trial
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

BATCH, EPOCHS, LEAST = 128, 20, 1.0
ARMS = ("none", "batch")
VALUES: dict[str, tuple[float, float, float]] = {
    "learning rate": (0.5, 1.0, 2.0),
    "momentum": (0.8, 0.9, 0.95),
    "decay": (0.0, 5e-4, 5e-3),
    "warm-up": (0.0, 0.05, 0.2),
}
# Taguchi's L9: which of its three values each hyperparameter takes in each of nine settings.
L9 = tuple((a, b, (a + b) % 3, (a + 2 * b) % 3) for a in range(3) for b in range(3))
CRITERION = Criterion(unit="percentage points", margin=(-1.0, 1.0), direction="above")
Arm = tuple[int, str]  # network, norm
Found = Mapping[Arm, list[list[dict[str, Any]]]]  # by setting of L9, one result per replicate


def settings_of(row: Sequence[int], centre: float) -> dict[str, float]:
    """Return the training settings of a row of L9 around a learning rate."""
    rate, momentum, decay, warm_up = (values[level] for values, level in zip(VALUES.values(), row, strict=True))
    return {"rate": rate * centre, "momentum": momentum, "decay": decay, "warm_up": warm_up}


def measure(experiment: Experiment) -> Outcome:
    """Compare how much the test errors spread over the grid."""
    chosen, replicates = networks(experiment), experiment.seeds(5, 16)
    names = [describe(network) for network in chosen]
    arms = _arms(experiment, chosen)
    centres = choose_rates(experiment, arms, replicates)
    found = _runs(experiment, arms, {arm: of.exponents for arm, of in centres.items()}, replicates)
    worst = 100 * (1 - chance(experiment.task))
    spreads = {arm: _spreads(found[arm], worst) for arm in arms}
    effects = [_effect(experiment, name, i, spreads, found) for i, name in enumerate(names)]
    holds = [median(spreads[i, "none"]) > LEAST for i, _ in enumerate(names)]
    regimes: dict[str, Verdict] = {
        name: effect.verdict if room else "no room here"
        for name, effect, room in zip(names, effects, holds, strict=True)
    }
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence="points by which an average setting is worse than the best, without BatchNorm and with it: "
        + "; ".join(
            f"{name} {mean(spreads[i, 'none']):.1f} and {mean(spreads[i, 'batch']):.1f}, a difference of "
            f"{effects[i].value:+.1f} [{effects[i].low:.1f}, {effects[i].high:.1f}] ({regimes[name]})"
            for i, name in enumerate(names)
        ),
        effects=effects,
        room=Room(
            any(holds),
            f"median spread without BatchNorm, more than {LEAST:g} point required: "
            + "; ".join(f"{name} {median(spreads[i, 'none']):.1f}" for i, name in enumerate(names)),
        ),
        pictures=[
            bars(
                "Spread over hyperparameters without BatchNorm minus that with it",
                "Above 0: more robust with BatchNorm. 95 % interval over replicates.",
                "network",
                Axis("difference of spreads", "percentage points"),
                effects,
            ),
            *(_by_value(name, i, found, worst) for i, name in enumerate(names)),
        ],
        tables=[_by_setting(names, centres, found, worst)],
        settings=f"{len(replicates)} replicates, {len(L9)} of {3 ** len(VALUES)} settings, {EPOCHS} epochs",
        regimes=regimes,
        trials=experiment.trials,
    )


def networks(experiment: Experiment) -> list[Mapping[str, Any]]:
    chosen = [experiment.mlp(depth) for depth in ((4,) if experiment.quick else (4, 12))]
    return [*chosen, experiment.convolutional] if experiment.user or not experiment.quick else chosen


def _arms(experiment: Experiment, chosen: Sequence[Mapping[str, Any]]) -> dict[Arm, dict[str, Any]]:
    images = len(experiment.task.train)
    size = min(BATCH, images)
    return {
        (index, norm): {
            **RECIPE,
            "network": dict(network),
            "norm": norm,
            "batch_size": size,
            "steps": EPOCHS * (images // size),
        }
        for index, network in enumerate(chosen)
        for norm in ARMS
    }


def _runs(
    experiment: Experiment,
    arms: Mapping[Arm, Mapping[str, Any]],
    centres: Mapping[Arm, Sequence[int]],
    replicates: Sequence[int],
) -> Found:
    of_replicate = {(arm, seed): e for arm, each in centres.items() for seed, e in zip(replicates, each, strict=True)}

    def trial(cell: tuple[Arm, int], seed: int) -> Trial:
        arm, row = cell
        settings = settings_of(L9[row], 2.0 ** of_replicate[arm, seed])
        return experiment.train(**{**arms[arm], **settings}, seed=seed, report="test")

    found = experiment.grid([(arm, row) for arm in arms for row in range(len(L9))], replicates, trial)
    return {arm: [found[arm, row] for row in range(len(L9))] for arm in arms}


def _error(result: Mapping[str, Any], worst: float) -> float:
    """Return the test error in percent; that of chance where the loss was not finite."""
    return worst if result["loss"] is None else min(100 * float(result["error"]), worst)


def _spreads(by_setting: Sequence[Sequence[Mapping[str, Any]]], worst: float) -> list[float]:
    """Return the mean error over the settings minus the lowest, one per replicate."""
    by_replicate = zip(*by_setting, strict=True)
    errors = [[_error(result, worst) for result in results] for results in by_replicate]
    return [mean(of_replicate) - min(of_replicate) for of_replicate in errors]


def _effect(experiment: Experiment, name: str, index: int, spreads: Mapping[Arm, list[float]], found: Found) -> Effect:
    # The middle setting of each arm stands for how an image's errors vary over a test set that is shared.
    pair = (found[index, "none"][len(L9) // 2], found[index, "batch"][len(L9) // 2])
    precision = precision_of(*pair, len(experiment.task.test), len(experiment.task.train))
    return CRITERION.effect(name, differences(spreads[index, "none"], spreads[index, "batch"]), precision)


def _by_value(name: str, index: int, found: Found, worst: float) -> Picture:
    """Draw the mean error over the three settings of each value of each hyperparameter."""
    series = []
    for norm in ARMS:
        labels, values = [], []
        for place, (which, levels) in enumerate(VALUES.items()):
            for level, value in enumerate(levels):
                mine = [row for row, setting in enumerate(L9) if setting[place] == level]
                labels.append(f"{which} {value:g}" + (" times" if which == "learning rate" else ""))
                values.append(mean(_error(result, worst) for row in mine for result in found[index, norm][row]))
        series.append(Series(NORMS[norm], labels, values))
    return Picture(
        f"{name}: test error by hyperparameter",
        "Mean over the three settings that have the value, and over replicates. Flat is robust.",
        "bar",
        Axis("hyperparameter"),
        Axis("test error", "%", log=True),
        series,
    )


def _by_setting(names: Sequence[str], centres: Mapping[Arm, Chosen], found: Found, worst: float) -> Table:
    rows = []
    for (index, norm), by_setting in found.items():
        for row, results in zip(L9, by_setting, strict=True):
            errors = [_error(result, worst) for result in results]
            chosen = settings_of(row, centres[index, norm].rate)
            lost = sum(result["loss"] is None for result in results)
            rows.append([names[index], NORMS[norm], *chosen.values(), mean(errors), min(errors), max(errors), lost])
    return Table(
        "Test error by setting, %, over replicates; learning rates around the one that most of them chose",
        ["network", "arm", "learning rate", "momentum", "decay", "warm-up", "mean", "lowest", "highest", "diverged"],
        rows,
    )
