"""BatchNorm converges in far fewer steps.

Question: How many steps, and how much time, does a network need to reach a target accuracy, with BatchNorm and without?

Claim: With BatchNorm training reaches the target in far fewer steps.

Criterion: The ratio of steps without BatchNorm over steps with it is above 1.25. Each arm runs at its own best learning
rate, and ratios are paired by seed. Each network with matched initialization is a regime, and a user's model counts as
one. Networks with torch's initialization, seconds, and equal learning rates are reported as separate effects.

Room: Two conditions must hold for each unnormalized network at its best learning rate on the tuning seed. It exceeds
twice the accuracy of chance, and needs more than 10 steps to the target. A network that never trains would decide the
claim on its own without saying anything about speed.

Method: SGD without momentum, batches of 32. The target is a validation accuracy fixed before any network is trained:
nine tenths of the way from chance to a linear classifier on the same data. The accuracy is measured every 5 steps, and
the step at which it crosses the target is interpolated. BatchNorm uses exact statistics of 256 training images; a
moving average lags behind in so few steps and would decide the outcome. Learning rates are tuned on a separate seed,
first on a factor-4 grid, then on factor-2 neighbours until both neighbours of the best rate are tried. A run that does
not reach the target counts with the step limit, which can only hide a difference; if there is any such run,
"equivalent" is never concluded. Seconds are the number of steps times the median time per step on one thread, without
evaluation. For equal rates both arms run at the unnormalized arm's best rate, and both at BatchNorm's.

Settings: limit 300 steps. Quick: MLP of depth 4 and 12 with He's initialization and of depth 12 with torch's, width 64,
relu, and the user's model, 5 seeds. Full: also depth 4 with torch's initialization and the small ResNet, 10 seeds.

Sources: Ioffe & Szegedy 2015, section 4.2 (arXiv 1502.03167); Bjorck et al. 2018 (1806.02375); Santurkar et al. 2018
(1805.11604)

Known: On ImageNet Ioffe & Szegedy's Inception needs 31.0 million steps to 72.2 % accuracy. With BatchNorm at the same
learning rate it needs 13.3 million, 2.3 times fewer; with 5 times the learning rate and other changes of the recipe
(BN-x5) 2.1 million, 14 times fewer. Here each arm has its own best learning rate, and the recipe stays the same. In a
pilot run on digits, depth 4 took 55–75 steps without and 15–20 with BatchNorm; depth 12 took 120–135 and 45–50.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

from gammabeta.lab.experiment import Experiment
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
Runs = dict[tuple[int, str, int], list[dict[str, Any]]]  # (network, arm, exponent of the rate) -> a record per seed


def measure(experiment: Experiment) -> Outcome:
    """Compare the steps and seconds to the target with BatchNorm and without."""
    every = races(experiment)
    seeds = experiment.seeds(5, 10)
    runs = experiment.grid_of_records(
        [
            (index, norm, exponent)
            for index, race in enumerate(every)
            for norm in ARMS
            for exponent in sorted(set(race.best.values()) if race.room.holds else {race.best[norm]})
        ],
        seeds,
        lambda arm, seed: experiment.train(**every[arm[0]].settings[arm[1]], rate=2.0 ** arm[2], seed=seed),
    )
    best = {(index, norm): runs[index, norm, race.best[norm]] for index, race in enumerate(every) for norm in ARMS}
    room = Room(
        any(race.room.holds and race.matched for race in every),
        "; ".join(f"{race.room.control} ({'room' if race.room.holds else 'no room'})" for race in every),
    )
    seconds = _step_times(experiment, every, seeds[:3])
    of_network = {
        race.name: _of_network(race, index, runs, seconds) for index, race in enumerate(every) if race.room.holds
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
        pictures=[_ratios(effects), *(_curves(race, index, best) for index, race in enumerate(every))],
        tables=[_table(every, runs, seconds)],
        settings=f"target {target(experiment):.3f} validation accuracy, {len(seeds)} seeds, limit {LIMIT} steps",
        regimes=regimes,
        trials=experiment.trials,
    )


def _step_times(experiment: Experiment, every: Sequence[Race], seeds: Sequence[int]) -> dict[tuple[int, str], float]:
    """Return the median seconds of a step of each network and arm."""

    def trial(arm: tuple[int, str], seed: int) -> Trial:
        index, norm = arm
        settings = {"network": dict(every[index].network), "norm": norm, "batch_size": BATCH_SIZE, "seed": seed}
        return Trial(STEP_TIME, {"task": dict(experiment.source), **settings})

    timed = experiment.grid_of_records([(index, norm) for index in range(len(every)) for norm in ARMS], seeds, trial)
    return {arm: median(record["timing"]["seconds_per_step"] for record in records) for arm, records in timed.items()}


def steps(records: list[dict[str, Any]]) -> list[float | None]:
    """Return each run's steps to the target; None where it was not reached."""
    return [record["result"]["steps"] for record in records]


def ratio(name: str, values: list[float], censored: int, unit: str = "times fewer steps") -> Effect:
    """Return the effect of one log ratio per seed."""
    return Criterion(unit=unit, margin=MARGIN, direction="above", null=1.0, ratio=True).effect(
        name, values, censored=censored
    )


def _of_network(race: Race, index: int, runs: Runs, seconds: dict[tuple[int, str], float]) -> list[Effect]:
    own = [runs[index, norm, race.best[norm]] for norm in ARMS]
    found = log_ratios(steps(own[0]), steps(own[1]), LIMIT)
    effects = [ratio(f"{race.name}, best learning rates", found.log_ratios, found.censored)]
    # A run that did not reach the target counts with the seconds of all its steps.
    time = [
        [(record["result"]["steps"] or LIMIT) * seconds[index, norm] for record in records]
        for norm, records in zip(ARMS, own, strict=True)
    ]
    ratios = logs_of_ratios(*time)
    effects.append(ratio(f"{race.name}, best learning rates, seconds", ratios, found.censored, "times less time"))
    for norm in ARMS if race.best["none"] != race.best["batch"] else ("none",):
        exponent = race.best[norm]
        equal = log_ratios(steps(runs[index, "none", exponent]), steps(runs[index, "batch", exponent]), LIMIT)
        whose = f"both at the best learning rate of {NORMS[norm]}, {2.0**exponent:g}"
        effects.append(ratio(f"{race.name}, {whose}", equal.log_ratios, equal.censored))
    return effects


def _sentence(effects: list[Effect], every: list[Race], holds: bool) -> str:
    if not holds:
        return "no network has room: without normalization it does not train, or it reaches the target at once"
    each = []
    for race in every:
        for effect in effects:
            if effect.name == f"{race.name}, best learning rates":
                each.append(f"{race.name} {effect.value:.1f} [{effect.low:.1f}, {effect.high:.1f}] ({effect.verdict})")
    time = [effect.value for effect in effects if effect.name.endswith("seconds")]
    return (
        f"times fewer steps with BatchNorm at best learning rates: {', '.join(each)}; in processor time "
        f"{min(time):.1f} to {max(time):.1f} times less" + without_room(every)
    )


def _ratios(effects: list[Effect]) -> Picture:
    return Picture(
        "Steps and seconds to the target, without BatchNorm over with it",
        "Above 1: BatchNorm is faster. 95 % interval over seeds; a run that did not reach the target counts with the "
        "limit.",
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


def _curves(race: Race, index: int, best: dict[tuple[int, str], list[dict[str, Any]]]) -> Picture:
    """Draw the validation accuracy by step at best rates; a run that has reached the target keeps its last value."""
    series = []
    for norm in ARMS:
        looks = [dict(map(tuple, record["result"]["accuracy"])) for record in best[index, norm]]
        at = sorted({step for look in looks for step in look})
        values = [[look[max(known for known in look if known <= step)] for look in looks] for step in at]
        series.append(
            Series(
                f"{NORMS[norm]}, learning rate {2.0 ** race.best[norm]:g}",
                at,
                [median(of_step) for of_step in values],
                [min(of_step) for of_step in values],
                [max(of_step) for of_step in values],
            )
        )
    goal = race.settings["none"]["target"]
    return Picture(
        f"{race.name}: accuracy by step",
        "Validation accuracy at each arm's best learning rate until the target; median and range over seeds.",
        "line",
        Axis("step"),
        Axis("validation accuracy"),
        series,
        [Line("y", goal, "target")],
    )


def _table(every: list[Race], runs: Runs, seconds: dict[tuple[int, str], float]) -> Table:
    rows = []
    for (index, norm, exponent), records in runs.items():
        race = every[index]
        reached = [step for step in steps(records) if step is not None]
        whose = [NORMS[arm] for arm in ARMS if race.best[arm] == exponent]
        rows.append(
            [
                race.name,
                NORMS[norm],
                2.0**exponent,
                " and ".join(whose),
                f"{len(reached)} of {len(records)}",
                median(LIMIT if step is None else step for step in steps(records)),
                1000 * seconds[index, norm],
            ]
        )
    return Table(
        "Steps to the target",
        [
            "network",
            "arm",
            "learning rate",
            "best learning rate of",
            "seeds that reach it",
            "steps (median, limit where not reached)",
            "ms per step",
        ],
        rows,
    )
