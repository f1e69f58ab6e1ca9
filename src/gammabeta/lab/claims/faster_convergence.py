"""BatchNorm converges in far fewer steps.

Question: How many steps, and how much time, does a network need to reach a target accuracy, with BatchNorm and without?

Claim: With BatchNorm training reaches the target in far fewer steps.

Criterion: The ratio of steps without BatchNorm over steps with it is above 1.25. Ratios are paired by replicate, which
chooses each arm's learning rate. Each network with matched initialization is a regime, and a user's model counts as
one. Networks with torch's initialization, seconds, and equal learning rates are reported as separate effects.

Room: Two conditions must hold for each unnormalized network, in the median of the replicates at the learning rates that
they chose for it. It exceeds twice the accuracy of chance, and needs more than 10 steps to the target. A network that
never trains would decide the claim on its own without saying anything about speed.

Method: SGD without momentum, batches of 32, constant learning rates. The target is a validation accuracy fixed before
any network is trained: nine tenths of the way from chance to a linear classifier on the same data. The accuracy is
measured every 5 steps, and the step at which it crosses the target is interpolated. BatchNorm uses exact statistics of
256 training images; a moving average lags behind in so few steps and would decide the outcome. Every replicate draws
its own split, initialization and order. For each arm it chooses one of three learning rates by its own validation
split: that with the fewest steps to the target or, where none reaches it, with the highest accuracy. The three are ½, 1
and 2 times a rate that a search on three further replicates found in the same way. Both arms' steps are therefore the
fewest of three runs. The steps are counted on validation splits drawn from the same data, which overlap, so that
intervals hold Nadeau & Bengio's term for it. A run that does not reach the target counts with the step limit, which can
only hide a difference; if there is any such run, "equivalent" is never concluded. Seconds are the number of steps times
the median time per step on one thread, without evaluation. For equal rates both arms run at the rate that the replicate
chose for the unnormalized one and, in a full study, at that for BatchNorm.

Settings: limit 300 steps. Quick: MLP of depth 4 and 8 with He's initialization, width 64, relu, and the user's model, 4
replicates. Full: depth 4 and 12, both with torch's initialization too, and the small ResNet, 10 replicates.

Sources: Ioffe & Szegedy 2015, section 4.2 (arXiv 1502.03167); Bjorck et al. 2018 (1806.02375); Santurkar et al. 2018
(1805.11604); Nadeau & Bengio 2003, Inference for the Generalization Error

Known: On ImageNet Ioffe & Szegedy's Inception needs 31.0 million steps to 72.2 % accuracy. With BatchNorm at the same
learning rate it needs 13.3 million, 2.3 times fewer; with 5 times the learning rate and other changes of the recipe
(BN-x5) 2.1 million, 14 times fewer. Here each arm has its own learning rates, and the recipe stays the same. In a pilot
run on digits, depth 4 took 55–75 steps without and 15–20 with BatchNorm; depth 12 took 120–135 and 45–50.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.losses import precision_on_validation
from gammabeta.lab.interval import Precision
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Line, Outcome, Picture, Room, Series, Table
from gammabeta.lab.paired import log_ratios, logs_of_ratios
from gammabeta.lab.race import ARMS, BATCH_SIZE, LIMIT, Race, races, target, without_room
from gammabeta.lab.trials.trial import Trial
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

MARGIN = (1 / 1.25, 1.25)
STEP_TIME = "gammabeta.lab.images.training:step_time"
Runs = dict[tuple[int, str, str], list[dict[str, Any]]]  # (network, arm, whose rates) -> a result per replicate


def measure(experiment: Experiment) -> Outcome:
    """Compare the steps and seconds to the target with BatchNorm and without."""
    seeds = experiment.seeds(4, 10)
    every = races(experiment, seeds)
    runs = _runs(experiment, every, seeds)
    room = Room(
        any(race.room.holds and race.matched for race in every),
        "; ".join(f"{race.room.control} ({'room' if race.room.holds else 'no room'})" for race in every),
    )
    seconds, precision = _step_times(experiment, every, seeds[:3]), precision_on_validation(experiment)
    of_network = {
        race.name: _of_network(race, index, runs, seconds, precision)
        for index, race in enumerate(every)
        if race.room.holds
    }
    regimes: dict[str, Verdict] = {
        race.name: of_network[race.name][0].verdict if race.room.holds else "no room here"
        for race in every
        if race.matched
    }
    # What decides comes first.
    effects = [effects[0] for effects in of_network.values()]
    effects += [effect for effects in of_network.values() for effect in effects[1:]]
    return Outcome(
        verdict=over_regimes(list(regimes.values())) if room.holds else "no room here",
        sentence=_sentence(effects, every, room.holds),
        effects=effects,
        room=room,
        pictures=[_ratios(effects), *(_curves(race) for index, race in enumerate(every))],
        tables=[_table(every, runs, seconds)],
        settings=f"target {target(experiment):.3f} validation accuracy, {len(seeds)} replicates, limit {LIMIT} steps",
        regimes=regimes,
        trials=experiment.trials,
    )


def _runs(experiment: Experiment, every: Sequence[Race], seeds: Sequence[int]) -> Runs:
    """Return every arm's runs at the rates that the replicates chose for it and, where there is room, for the other."""
    shared = ("none",) if experiment.quick else ARMS
    arms = [
        (index, norm, whose)
        for index, race in enumerate(every)
        for norm in ARMS
        for whose in ARMS
        if whose == norm or (race.room.holds and whose in shared)
    ]

    def trial(arm: tuple[int, str, str], place: int) -> Trial:
        index, norm, whose = arm
        rate = 2.0 ** every[index].chosen[whose].exponents[place]
        return experiment.train(**every[index].settings[norm], rate=rate, seed=seeds[place])

    return experiment.grid(arms, range(len(seeds)), trial)


def _step_times(experiment: Experiment, every: Sequence[Race], seeds: Sequence[int]) -> dict[tuple[int, str], float]:
    """Return the median seconds of a step of each network and arm."""

    def trial(arm: tuple[int, str], seed: int) -> Trial:
        index, norm = arm
        settings = {"network": dict(every[index].network), "norm": norm, "batch_size": BATCH_SIZE, "seed": seed}
        return Trial(STEP_TIME, {"task": dict(experiment.source), **settings})

    timed = experiment.grid_of_records([(index, norm) for index in range(len(every)) for norm in ARMS], seeds, trial)
    return {arm: median(record["timing"]["seconds_per_step"] for record in records) for arm, records in timed.items()}


def steps(results: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Return each run's steps to the target; None where it was not reached."""
    return [result["steps"] for result in results]


def _of_network(
    race: Race, index: int, runs: Runs, seconds: dict[tuple[int, str], float], precision: Precision
) -> list[Effect]:
    def ratio(name: str, values: list[float], censored: int, unit: str = "times fewer steps") -> Effect:
        criterion = Criterion(unit=unit, margin=MARGIN, direction="above", null=1.0, ratio=True)
        return criterion.effect(f"{race.name}, {name}", values, precision, censored=censored)

    own = [runs[index, norm, norm] for norm in ARMS]
    found = log_ratios(steps(own[0]), steps(own[1]), LIMIT)
    effects = [ratio("chosen learning rates", found.log_ratios, found.censored)]
    # A run that did not reach the target counts with the seconds of all its steps.
    time = [
        [(result["steps"] or LIMIT) * seconds[index, norm] for result in results]
        for norm, results in zip(ARMS, own, strict=True)
    ]
    ratios = logs_of_ratios(*time)
    effects.append(ratio("chosen learning rates, seconds", ratios, found.censored, "times less time"))
    for whose in ARMS:
        pair = [runs[index, norm, whose] for norm in ARMS if (index, norm, whose) in runs]
        if len(pair) == len(ARMS):
            equal = log_ratios(steps(pair[0]), steps(pair[1]), LIMIT)
            effects.append(
                ratio(f"both at the learning rates chosen for {NORMS[whose]}", equal.log_ratios, equal.censored)
            )
    return effects


def _sentence(effects: list[Effect], every: list[Race], holds: bool) -> str:
    if not holds:
        return "no network has room: without normalization it does not train, or it reaches the target at once"
    each = []
    for race in every:
        for effect in effects:
            if effect.name == f"{race.name}, chosen learning rates":
                each.append(f"{race.name} {effect.value:.1f} [{effect.low:.1f}, {effect.high:.1f}] ({effect.verdict})")
    time = [effect.value for effect in effects if effect.name.endswith("seconds")]
    return (
        f"times fewer steps with BatchNorm at chosen learning rates: {', '.join(each)}; in processor time "
        f"{min(time):.1f} to {max(time):.1f} times less" + without_room(every)
    )


def _ratios(effects: list[Effect]) -> Picture:
    return Picture(
        "Steps and seconds to the target, without BatchNorm over with it",
        "Above 1: BatchNorm is faster. 95 % interval over replicates; a run that did not reach the target counts with "
        "the limit.",
        "bar",
        Axis("network and learning rates"),
        Axis("ratio", log=True),
        [
            Series(
                "ratio",
                [effect.name for effect in effects],
                [effect.value for effect in effects],
                [effect.low for effect in effects],
                [effect.high for effect in effects],
            )
        ],
        [Line("y", MARGIN[1], "margin"), Line("y", MARGIN[0], "margin")],
    )


def _curves(race: Race) -> Picture:
    """Draw the validation accuracy by step at chosen rates; a run that has reached the target keeps its last value."""
    series = []
    for norm in ARMS:
        looks = [dict(map(tuple, result["accuracy"])) for result in race.chosen[norm].results]
        at = sorted({step for look in looks for step in look})
        values = [[look[max(known for known in look if known <= step)] for look in looks] for step in at]
        series.append(
            Series(
                f"{NORMS[norm]}, mostly at a learning rate of {race.chosen[norm].rate:g}",
                at,
                [median(of_step) for of_step in values],
                [min(of_step) for of_step in values],
                [max(of_step) for of_step in values],
            )
        )
    goal = race.settings["none"]["target"]
    return Picture(
        f"{race.name}: accuracy by step",
        "Validation accuracy at the chosen learning rates until the target; median and range over replicates.",
        "line",
        Axis("step"),
        Axis("validation accuracy"),
        series,
        [Line("y", goal, "target")],
    )


def _table(every: list[Race], runs: Runs, seconds: dict[tuple[int, str], float]) -> Table:
    rows = []
    for (index, norm, whose), results in runs.items():
        race = every[index]
        reached = [step for step in steps(results) if step is not None]
        rows.append(
            [
                race.name,
                NORMS[norm],
                NORMS[whose],
                race.chosen[whose].rate,
                f"{len(reached)} of {len(results)}",
                median(LIMIT if step is None else step for step in steps(results)),
                1000 * seconds[index, norm],
            ]
        )
    return Table(
        "Steps to the target",
        [
            "network",
            "arm",
            "at the learning rates chosen for",
            "most frequent one",
            "replicates that reach it",
            "steps (median, limit where not reached)",
            "ms per step",
        ],
        rows,
    )
