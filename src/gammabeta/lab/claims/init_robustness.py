"""Initialization matters less with BatchNorm.

Question: Over how many decades of the initial weights' scale does training succeed, with BatchNorm and without?

Claim: With BatchNorm training succeeds from a wider range of initial scales.

Criterion: The number of decades of gain from which training succeeds, without a gap around 1, with BatchNorm minus
without, paired by seed, is above 1. The gains are a decade apart, so one decade is added to the interval on both sides.
Each activation is a regime. A run succeeds if its test accuracy reaches the target of faster_convergence. The accuracy
must also be 2 points above that of the same network with only its last layer trained, at gain 1. The claim is not about
the features of a random network.

Room: In the median of seeds the unnormalized network succeeds at gain 1 and fails at some gain of the grid.

Method: An MLP, SGD, batches of 32. All weights except the last layer's are He's initialization times the gain. The
learning rate is tuned for each arm at each gain on a separate seed. Every sixteenfold rate from 2⁻¹⁶ to 2⁸ is tried,
then factor-2 neighbours until both neighbours of the best rate are tried. So no arm fails for lack of a suitable rate.
Evaluation uses exact statistics.

Settings: 4 layers of 48, relu; gains 10⁻⁶ to 10³; 150 steps, 3 seeds (quick); also tanh, 300 steps, 8 seeds (full).

Sources: Ioffe & Szegedy 2015 (arXiv 1502.03167); Glorot & Bengio 2010; Yang et al. 2019 (1902.08129)

Known: In a pilot run: without BatchNorm only near gain 1; with BatchNorm and relu from 10⁻⁵ to 10³.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.interval import Precision
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Line, Outcome, Picture, Room, Series, Table
from gammabeta.lab.paired import differences
from gammabeta.lab.race import target
from gammabeta.lab.tuning import at_best, error_then_loss
from gammabeta.lab.verdict import over_regimes

EXACT = False
KIND = "images"

ARMS = ("none", "batch")
DECADES = tuple(range(-6, 4))
RATES = (-16, -12, -8, -4, 0, 4, 8)
MARGIN = (-1.0, 1.0)
MORE = 0.02  # required accuracy above training only the last layer
CRITERION = Criterion(unit="decades", margin=MARGIN, direction="above")
Accuracy = Mapping[str, list[float]]  # by arm ("relu batch -3", "relu batch last"), one value per seed


def span(succeeded: dict[int, bool]) -> int:
    """Count the decades around gain 1 that succeed without a gap; 0 where gain 1 itself does not."""
    if not succeeded[0]:
        return 0
    count = 1
    for direction in (-1, 1):
        at = direction
        while succeeded.get(at, False):
            count, at = count + 1, at + direction
    return count


def measure(experiment: Experiment) -> Outcome:
    """Compare the range of initial gains from which training succeeds."""
    seeds = experiment.seeds(3, 8)
    activations = ("relu",) if experiment.quick else ("relu", "tanh")
    steps = 150 if experiment.quick else 300
    arms = _arms(experiment, activations, steps)
    rates, found = at_best(experiment, arms, error_then_loss, seeds, report="test", coarse=RATES)
    accuracy = {name: [1 - result["error"] for result in results] for name, results in found.items()}
    goal = target(experiment)
    spans = {(a, norm): _spans(accuracy, f"{a} {norm}", goal) for a in activations for norm in ARMS}
    wider = {a: differences(spans[a, "batch"], spans[a, "none"]) for a in activations}
    each = [
        CRITERION.effect(f"decades wider with BatchNorm, {a}", values, Precision(step=1.0))
        for a, values in wider.items()
    ]
    regimes = {a: effect.verdict for a, effect in zip(activations, each, strict=True)}
    without = {a: median(spans[a, "none"]) for a in activations}
    room = Room(
        all(0 < value < len(DECADES) for value in without.values()),
        f"without normalization {', '.join(f'{a} {value:.0f}' for a, value in without.items())} of "
        f"{len(DECADES)} decades succeed",
    )
    return Outcome(
        verdict=over_regimes(list(regimes.values())) if room.holds else "no room here",
        sentence=_sentence(each, spans, activations),
        effects=each,
        room=room,
        pictures=[_picture(activation, accuracy, goal) for activation in activations],
        tables=[_table(rates, accuracy)],
        settings=f"{len(seeds)} seeds, {steps} steps, target {goal:.3f}",
        regimes=regimes,
        trials=experiment.trials,
    )


def _arms(experiment: Experiment, activations: Sequence[str], steps: int) -> dict[str, dict[str, Any]]:
    """Return every arm at every gain, and with only its last layer trained at gain 1."""
    base = {"batch_size": 32, "steps": steps}
    arms: dict[str, dict[str, Any]] = {}
    for activation in activations:
        for norm in ARMS:
            for decade in DECADES:
                network = experiment.mlp(4, width=48, activation=activation, gain=10.0**decade)
                arms[f"{activation} {norm} {decade}"] = {**base, "network": network, "norm": norm}
            network = experiment.mlp(4, width=48, activation=activation)
            arms[f"{activation} {norm} last"] = {**base, "network": network, "norm": norm, "only_last": True}
    return arms


def _spans(accuracy: Accuracy, arm: str, goal: float) -> list[float]:
    """Return, for each seed, the decades from which the arm's training succeeds."""
    spans = []
    for index, last in enumerate(accuracy[f"{arm} last"]):
        least = max(goal, last + MORE)
        spans.append(float(span({decade: accuracy[f"{arm} {decade}"][index] >= least for decade in DECADES})))
    return spans


def _sentence(each: Sequence[Effect], spans: Mapping[tuple[str, str], list[float]], activations: Sequence[str]) -> str:
    shown = "; ".join(
        f"{a} {effect.value:+.1f} [{effect.low:.1f}, {effect.high:.1f}] ({effect.verdict}), "
        f"{median(spans[a, 'none']):.0f} without and {median(spans[a, 'batch']):.0f} with it of {len(DECADES)}"
        for a, effect in zip(activations, each, strict=True)
    )
    return f"with BatchNorm training succeeds over more decades of initial gain: {shown}"


def _picture(activation: str, accuracy: Accuracy, goal: float) -> Picture:
    return Picture(
        f"Accuracy by initial gain, {activation}",
        "Each arm at its best learning rate for the gain, test accuracy after a fixed number of steps; median and "
        "range over seeds. Dotted: what training only the last layer reaches at gain 1.",
        "line",
        Axis("gain of the initial weights", log=True),
        Axis("test accuracy"),
        [_series(norm, [accuracy[f"{activation} {norm} {decade}"] for decade in DECADES]) for norm in ARMS],
        [
            Line("y", goal, "target"),
            *(
                Line("y", median(accuracy[f"{activation} {norm} last"]), f"only the last layer, {NORMS[norm]}")
                for norm in ARMS
            ),
        ],
    )


def _series(norm: str, of_gain: list[list[float]]) -> Series:
    return Series(
        NORMS[norm],
        [10.0**decade for decade in DECADES],
        [median(values) for values in of_gain],
        [min(values) for values in of_gain],
        [max(values) for values in of_gain],
    )


def _table(rates: Mapping[str, int], accuracy: Accuracy) -> Table:
    rows = []
    for name, values in accuracy.items():
        activation, norm, gain = name.split()
        label = "only the last layer, 1" if gain == "last" else f"10^{gain}"
        rows.append([activation, NORMS[norm], label, 2.0 ** rates[name], median(values)])
    columns = ["activation", "arm", "gain", "learning rate", "accuracy"]
    return Table("Test accuracy by initial gain, median over seeds", columns, rows)
