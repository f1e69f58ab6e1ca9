"""BatchNorm allows much larger learning rates.

Question: What is the largest learning rate at which training still reaches a target, with BatchNorm and without?

Claim: With BatchNorm much larger learning rates work.

Criterion: The ratio of the largest learning rates, with BatchNorm over without, paired by seed, is above 2. Rates lie
on a grid of powers of two, so one step of the grid is added to the interval on both sides. Each network with matched
initialization is a regime, and a user's model counts as one.

Room: As for faster_convergence: without normalization the network trains at its best learning rate. Also, on every seed
some rate of the grid fails, so that a largest rate exists.

Method: The networks, batches and target of faster_convergence. For each seed the rates above the arm's best one are
tried, doubling each time, until two in a row fail to reach the target within the limit; the largest that reached it
counts. Where none reaches it, the lowest rate tried counts (the value is censored).

Settings: limit 300 steps, grid from 2⁻¹⁶ to 2²⁰; 3 seeds (quick), 10 seeds (full); networks as in faster_convergence.

Sources: Ioffe & Szegedy 2015, section 3.3 (arXiv 1502.03167); Bjorck et al. 2018 (1806.02375)

Known: In a pilot run on digits: 8 times at depth 4, 32 times at depth 12, 4 times with tanh and in a ResNet.
"""

import math
from statistics import median
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.interval import Precision
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Line, Outcome, Picture, Room, Series, Table
from gammabeta.lab.race import ARMS, Race, races, without_room
from gammabeta.lab.tuning import HIGHEST_TRIED, LOWEST, largest
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

MARGIN = (0.5, 2.0)
GRID = math.log(2.0)
CRITERION = Criterion(unit="times larger learning rate", margin=MARGIN, direction="above", null=1.0, ratio=True)


def measure(experiment: Experiment) -> Outcome:
    """Compare the largest learning rates that reach the target."""
    every = races(experiment)
    seeds = experiment.seeds(3, 10)
    with_room = [race for race in every if race.room.holds]
    keys = [(race.name, norm, seed) for race in with_room for norm in ARMS for seed in seeds]
    arms = [{**race.settings[norm], "seed": seed} for race in with_room for norm in ARMS for seed in seeds]
    start = [race.best[norm] for race in with_room for norm in ARMS for _ in seeds]
    top = dict(zip(keys, largest(experiment, arms, start, lambda result: result["steps"] is not None), strict=True))
    endless = [key for key, exponent in top.items() if exponent is not None and exponent >= HIGHEST_TRIED - 1]
    room = Room(
        bool(with_room) and any(race.matched for race in with_room) and not endless,
        "; ".join(f"{race.room.control} ({'room' if race.room.holds else 'no room'})" for race in every)
        + f"; runs in which no rate failed: {len(endless)} of {len(top)}",
    )
    ratios: dict[str, list[float]] = {}
    censored: dict[str, int] = {}
    for race in with_room:
        pairs = [[top[race.name, norm, seed] for norm in ARMS] for seed in seeds]
        censored[race.name] = sum(exponent is None for pair in pairs for exponent in pair)
        ratios[race.name] = [GRID * ((LOWEST if b is None else b) - (LOWEST if a is None else a)) for a, b in pairs]
    effects = [
        CRITERION.effect(name, values, Precision(step=GRID), censored=censored[name]) for name, values in ratios.items()
    ]
    verdicts = {effect.name: effect.verdict for effect in effects}
    regimes: dict[str, Verdict] = {race.name: verdicts.get(race.name, "no room here") for race in every if race.matched}
    return Outcome(
        verdict=over_regimes(list(regimes.values())) if room.holds else "no room here",
        sentence=_sentence(effects, censored, every),
        effects=effects,
        room=room,
        pictures=[_picture(with_room, seeds, top)],
        tables=[
            Table(
                "Largest learning rate that reaches the target",
                ["network", "arm", "best learning rate", "all seeds", "median seed", "largest of any seed"],
                [
                    _row(race, norm, [top[race.name, norm, seed] for seed in seeds])
                    for race in with_room
                    for norm in ARMS
                ],
            )
        ],
        settings=f"{len(seeds)} seeds",
        regimes=regimes,
        trials=experiment.trials,
    )


def _row(race: Race, norm: str, exponents: list[int | None]) -> list[Any]:
    known = [2.0**exponent if exponent is not None else 0.0 for exponent in exponents]
    return [race.name, NORMS[norm], 2.0 ** race.best[norm], min(known), median(known), max(known)]


def _sentence(each: list[Effect], censored: dict[str, int], every: list[Race]) -> str:
    if not any(race.room.holds and race.matched for race in every):
        return "no network has room: without normalization it does not train, or it reaches the target at once"
    return (
        "the largest learning rate with BatchNorm over that without: "
        + ", ".join(
            f"{effect.name} {effect.value:.1f} times [{effect.low:.1f}, {effect.high:.1f}] ({effect.verdict}"
            + (f"; {n} runs in which no rate works count as the lowest tried" if (n := censored[effect.name]) else "")
            + ")"
            for effect in each
        )
        + without_room(every)
    )


def _picture(with_room: list[Race], seeds: list[int], top: dict[tuple[str, str, int], int | None]) -> Picture:
    series = []
    for norm in ARMS:
        rates = [
            [
                2.0 ** (LOWEST if exponent is None else exponent)
                for exponent in (top[race.name, norm, seed] for seed in seeds)
            ]
            for race in with_room
        ]
        series.append(
            Series(
                NORMS[norm],
                [race.name for race in with_room],
                [median(of) for of in rates],
                [min(of) for of in rates],
                [max(of) for of in rates],
            )
        )
    return Picture(
        "Largest learning rate that reaches the target",
        "On a grid of powers of two; median and range over seeds.",
        "bar",
        Axis("network"),
        Axis("learning rate", log=True),
        series,
        [Line("y", 1.0, "learning rate 1")],
    )
