"""Initialization matters less with BatchNorm.

Question: How much does the result depend on the rule by which weights are initialized, with BatchNorm and without?

Claim: With BatchNorm the network is less sensitive to its initial weights.

Criterion: The spread is the largest minus the smallest test error over six families of initialization, in percentage
points. The spread without BatchNorm minus that with it, paired by replicate, is above 2. Each network is judged twice.
At one rate: all families train at the learning rate that suits He's, as one who changes only the initialization would
train. Tuned: every family trains at its own best rate. Each is a regime.

Room: In a regime, the mean spread without BatchNorm is above 2 points.

Method: The families are He's normal, Xavier's normal, torch's default (uniform within ±1/√(fan in)), orthogonal, normal
with standard deviation 0.01, and uniform within ±0.3. They draw all weights but the last layer's; biases are 0. The
recipe: SGD with momentum 0.9, 5 % warm-up, half a cosine to 0, decay 5e-4 on weights; batches of 32, 20 epochs. Every
replicate draws its own split and chooses its learning rate on its own validation split. Evaluation uses exact
statistics. A range over families is larger the noisier results are, in both arms alike.

Settings: Quick: MLP of 6 layers of 48 with relu, 200 training images, 4 replicates. Full: all training images; also
tanh, and the small ResNet (or the user's model); 12 replicates.

Sources: Ioffe & Szegedy 2015 (arXiv 1502.03167); Glorot & Bengio 2010; He et al. 2015 (1502.01852); Saxe et al. 2014
(1312.6120); Zhang et al. 2019, Fixup (1901.09321)

Known: He et al. 2015: from Xavier's initialization a network of 30 layers with relu does not train; from He's it does.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from gammabeta.lab.answers import precision_of
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images import init_together
from gammabeta.lab.images.init_together import FAMILIES
from gammabeta.lab.images.networks import describe
from gammabeta.lab.interval import Precision
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Heat, Outcome, Picture, Room, Table
from gammabeta.lab.paired import differences
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import error_then_loss
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

ARMS = ("none", "batch")
BATCH, EPOCHS, FEW_IMAGES = 32, 20, 200
REFERENCE = "He"
MARGIN = (-2.0, 2.0)
COARSE = (-5, -3)
WAYS = ("at one rate", "tuned")
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="above")
Arm = tuple[str, str, str]  # network, norm, family
Results = Mapping[Arm, list[dict[str, Any]]]


@versioned(1, together="gammabeta.lab.images.init_together")
def initialized(**settings: Any) -> dict[str, Any]:
    """Train a network by the recipe from weights of a family.

    Args:
        settings: task, network, norm, family, batch_size, steps, rate, seed, report, and images where not all.

    Returns:
        ``error``, ``loss``, ``moving_error``, ``moving_loss``, ``validation``, ``wrong``, ``moving_wrong`` as
        `gammabeta.lab.images.training.train` returns them.
    """
    return init_together.initialized([settings])[0]


def networks(experiment: Experiment) -> list[Mapping[str, Any]]:
    """Return the networks to measure."""
    relu = experiment.mlp(6, width=48)
    if experiment.quick:
        return [experiment.convolutional if experiment.user else relu]
    return [relu, experiment.mlp(6, width=48, activation="tanh"), experiment.convolutional]


def spreads(results: Results, network: str, norm: str) -> list[float]:
    """Return the largest minus the smallest error over families in percent, one value per replicate."""
    of_family = [[100 * float(result["error"]) for result in results[network, norm, family]] for family in FAMILIES]
    return [max(errors) - min(errors) for errors in zip(*of_family, strict=True)]


def measure(experiment: Experiment) -> Outcome:
    """Compare how much the error depends on the initialization."""
    seeds, every = experiment.seeds(4, 12), networks(experiment)
    chosen, found = _runs(experiment, every, seeds)
    cells = {f"{describe(network)}, {way}": (describe(network), way) for network in every for way in WAYS}
    without = {name: mean(spreads(found[way], network, "none")) for name, (network, way) in cells.items()}
    each = {
        name: CRITERION.effect(
            f"{name}: spread without BatchNorm minus that with it",
            differences(*(spreads(found[way], network, norm) for norm in ARMS)),
            _precision(experiment, found[way], network),
        )
        for name, (network, way) in cells.items()
    }
    regimes: dict[str, Verdict] = {
        name: each[name].verdict if without[name] > MARGIN[1] else "no room here" for name in cells
    }
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence(
            each, regimes, {n: (without[n], mean(spreads(found[w], k, "batch"))) for n, (k, w) in cells.items()}
        ),
        effects=list(each.values()),
        room=Room(
            any(spread > MARGIN[1] for spread in without.values()),
            f"spread without BatchNorm, above {MARGIN[1]:g}: "
            + ", ".join(f"{name} {spread:.1f} points" for name, spread in without.items()),
        ),
        pictures=[_heat(describe(network), found) for network in every],
        tables=[_table(chosen, found)],
        settings=f"{len(seeds)} replicates, {EPOCHS} epochs",
        regimes=regimes,
        trials=experiment.trials,
    )


def _runs(
    experiment: Experiment, every: Sequence[Mapping[str, Any]], seeds: Sequence[int]
) -> tuple[Mapping[Arm, Chosen], dict[str, Results]]:
    """Run every family at its own rates, and at those of the reference family."""
    images = min(FEW_IMAGES, len(experiment.task.train)) if experiment.quick else len(experiment.task.train)
    base = {
        "batch_size": BATCH,
        "steps": EPOCHS * (images // BATCH),
        **({"images": images} if experiment.quick else {}),
    }

    def trial(arm: Mapping[str, Any], exponent: int, replicate: int, report: str) -> Trial:
        own = {"task": experiment.drawn(replicate), "rate": 2.0**exponent, "seed": replicate, "report": report}
        return Trial(f"{__name__}:initialized", {**arm, **own})

    arms: dict[Arm, dict[str, Any]] = {
        (describe(network), norm, family): {"network": dict(network), "norm": norm, "family": family, **base}
        for network in every
        for norm in ARMS
        for family in FAMILIES
    }
    chosen = choose_rates(experiment, arms, seeds, error_then_loss, COARSE, trial)

    def at_reference(arm: Arm, replicate: int) -> Trial:
        exponents = chosen[arm[0], arm[1], REFERENCE].exponents
        return trial(arms[arm], exponents[seeds.index(replicate)], replicate, "test")

    one = experiment.grid(list(arms), seeds, at_reference)
    return chosen, {WAYS[0]: one, WAYS[1]: {arm: of.results for arm, of in chosen.items()}}


def _precision(experiment: Experiment, results: Results, network: str) -> Precision:
    """Return the precision of a difference of spreads, by the arms of the reference family.

    A spread compares two families: on a shared test set its variance is about twice that of one comparison.
    """
    task = experiment.task
    without, within = (results[network, norm, REFERENCE] for norm in ARMS)
    one = precision_of(without, within, len(task.test), len(task.train))
    return one if one.variance is None else Precision(samples=one.samples, variance=2 * one.variance)


def _sentence(
    each: Mapping[str, Effect], regimes: Mapping[str, Verdict], means: Mapping[str, tuple[float, float]]
) -> str:
    return "points by which the error varies over six initializations, without and with BatchNorm: " + "; ".join(
        f"{name} {means[name][0]:.1f} and {means[name][1]:.1f}, difference {e.value:+.1f} [{e.low:.1f}, {e.high:.1f}] "
        f"({regimes[name]})"
        for name, e in each.items()
    )


def _mean_error(results: Results, arm: Arm) -> float:
    return 100 * mean(float(result["error"]) for result in results[arm])


def _heat(network: str, found: Mapping[str, Results]) -> Picture:
    rows = [(norm, way) for way in WAYS for norm in ARMS]
    z = [[_mean_error(found[way], (network, norm, family)) for family in FAMILIES] for norm, way in rows]
    return Picture(
        f"{network}: test error by initialization",
        "At the learning rate that suits He's initialization, and at each family's own; mean over replicates.",
        "heatmap",
        Axis("initialization"),
        Axis("norm and learning rate"),
        heat=Heat(
            list(FAMILIES),
            [f"{NORMS[norm]}, {way}" for norm, way in rows],
            z,
            [[f"{value:.1f}" for value in row] for row in z],
        ),
    )


def _table(chosen: Mapping[Arm, Chosen], found: Mapping[str, Results]) -> Table:
    return Table(
        "Test error, %, mean over replicates",
        ["network", "norm", "initialization", "own learning rate", *WAYS],
        [
            [network, NORMS[norm], family, of.rate, *(_mean_error(found[way], (network, norm, family)) for way in WAYS)]
            for (network, norm, family), of in chosen.items()
        ],
    )
