"""BatchNorm allows much larger learning rates.

Question: What is the largest learning rate at which training still reaches a target, with BatchNorm and without?

Claim: With BatchNorm much larger learning rates work.

Criterion: The ratio of the largest learning rates, with BatchNorm over without, paired by replicate, is above 2. Rates
lie on a grid of powers of two, so one step of the grid is added to the interval on both sides. Each network with
matched initialization is a regime, and a user's model counts as one. A search that ended at an end of the grid has no
largest rate: that pair is no ratio and is left out. Where over a quarter of a regime's pairs are, the regime gets no
number. It then has a verdict only by counting: it is supported if BatchNorm's largest rate is above twice the other in
so many pairs that a sign test rejects one half at 5 %, counting only pairs in which the order is certain.

Room: As for faster_convergence: without normalization the network trains at the learning rates chosen for it.

Method: The networks, replicates, batches and target of faster_convergence. The claim is about the largest learning rate
that still works and not about the best one; rates are constant. The search is within the replicate, which has its own
split, initialization and order. It begins at the rate that the replicate chose for the arm in faster_convergence and
doubles it until two in a row fail to reach the target within the limit; the largest that reached it counts. Where that
rate and its double fail, it goes down to the first that works. Where none reaches the target down to the grid's lower
end, or where rates still work at its upper end, the search is censored. Whether the target is reached is read off
validation splits, which are drawn from the same data and overlap; intervals hold Nadeau & Bengio's term for it.

Settings: limit 300 steps, grid from 2⁻¹⁶ to 2²⁰; networks as in faster_convergence; the first 3 of its replicates
(quick), all 10 (full).

Sources: Ioffe & Szegedy 2015, section 3.3 (arXiv 1502.03167); Bjorck et al. 2018 (1806.02375); Nadeau & Bengio 2003,
Inference for the Generalization Error

Known: Ioffe & Szegedy train Inception with BatchNorm at 5 and 30 times the learning rate.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from scipy import stats

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.losses import precision_on_validation
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Line, Outcome, Picture, Room, Series, Table
from gammabeta.lab.race import ARMS, Race, races, without_room
from gammabeta.lab.tuning import HIGHEST_TRIED, LOWEST, largest
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

MARGIN = (0.5, 2.0)
GRID = math.log(2.0)
# More pairs than this share without a ratio, and the rest would speak only of the easy ones.
MOST_CENSORED = 0.25
CRITERION = Criterion(unit="times larger learning rate", margin=MARGIN, direction="above", null=1.0, ratio=True)
Top = Mapping[tuple[str, str, int], int | None]  # exponent of the largest rate that works, by network, arm, replicate


@dataclass(frozen=True)
class Pairs:
    """A network's largest rates as exponents of 2, without and with BatchNorm; one pair per replicate."""

    each: Sequence[tuple[int | None, int | None]]

    @staticmethod
    def _ends(exponent: int | None) -> tuple[float, float]:
        """Return the bounds of an exponent: itself, or what the end of the grid leaves open."""
        if exponent is None:
            return -math.inf, LOWEST
        return (exponent, math.inf) if exponent >= HIGHEST_TRIED - 1 else (exponent, exponent)

    @property
    def log_ratios(self) -> list[float]:
        """The natural logs of the ratios, of the pairs in which both searches ended within the grid."""
        ends = [(self._ends(without), self._ends(within)) for without, within in self.each]
        return [GRID * (b[0] - a[0]) for a, b in ends if a[0] == a[1] and b[0] == b[1]]

    @property
    def censored(self) -> int:
        return len(self.each) - len(self.log_ratios)

    @property
    def certain(self) -> tuple[int, int]:
        """In how many pairs BatchNorm's largest rate is certainly above twice the other, and below half of it."""
        ends = [(self._ends(without), self._ends(within)) for without, within in self.each]
        return sum(b[0] > a[1] + 1 for a, b in ends), sum(b[1] < a[0] - 1 for a, b in ends)

    def counted(self) -> Verdict:
        """Judge by the sign test: how often a fair coin would fall on one side at least this often, two-sided."""
        more, less = self.certain
        sides: tuple[tuple[int, Verdict], ...] = ((more, "supported"), (less, "contradicted"))
        for count, verdict in sides:
            if stats.binomtest(count, len(self.each), 0.5).pvalue <= 0.05 and count > len(self.each) / 2:
                return verdict
        return "inconclusive"


def measure(experiment: Experiment) -> Outcome:
    """Compare the largest learning rates that reach the target."""
    every = races(experiment, experiment.seeds(4, 10))
    seeds = experiment.seeds(3, 10)
    with_room = [race for race in every if race.room.holds]
    top = _largest(experiment, with_room, seeds)
    room = Room(
        any(race.matched for race in with_room),
        "; ".join(f"{race.room.control} ({'room' if race.room.holds else 'no room'})" for race in every),
    )
    pairs = {
        race.name: Pairs([(top[race.name, "none", s], top[race.name, "batch", s]) for s in seeds]) for race in with_room
    }
    effects = {
        name: CRITERION.effect(name, of.log_ratios, precision_on_validation(experiment, GRID))
        for name, of in pairs.items()
        if of.censored <= MOST_CENSORED * len(seeds)
    }
    verdicts = {name: effects[name].verdict if name in effects else of.counted() for name, of in pairs.items()}
    regimes: dict[str, Verdict] = {race.name: verdicts.get(race.name, "no room here") for race in every if race.matched}
    return Outcome(
        verdict=over_regimes(list(regimes.values())) if room.holds else "no room here",
        sentence=_sentence(effects, pairs, verdicts, every),
        effects=list(effects.values()),
        room=room,
        pictures=[_picture(with_room, seeds, top)],
        tables=[
            Table(
                "Largest learning rate that reaches the target",
                [
                    "network",
                    "arm",
                    "learning rate chosen by most",
                    "smallest",
                    "median",
                    "largest",
                    "searches censored",
                ],
                [
                    _row(race, norm, [top[race.name, norm, seed] for seed in seeds])
                    for race in with_room
                    for norm in ARMS
                ],
            )
        ],
        settings=f"{len(seeds)} replicates",
        regimes=regimes,
        trials=experiment.trials,
    )


def _largest(experiment: Experiment, with_room: Sequence[Race], seeds: Sequence[int]) -> Top:
    """Search the largest rate that works for every network, arm and replicate."""
    keys = [(race.name, norm, seed) for race in with_room for norm in ARMS for seed in seeds]
    arms = [{**race.settings[norm], "seed": seed} for race in with_room for norm in ARMS for seed in seeds]
    start = [exponent for race in with_room for norm in ARMS for exponent in race.chosen[norm].exponents[: len(seeds)]]
    found = largest(experiment, arms, start, lambda result: result["steps"] is not None)
    return dict(zip(keys, found, strict=True))


def _row(race: Race, norm: str, exponents: list[int | None]) -> list[Any]:
    known = [2.0**exponent for exponent in exponents if exponent is not None and exponent < HIGHEST_TRIED - 1]
    numbers = [min(known), median(known), max(known)] if known else [None, None, None]
    return [race.name, NORMS[norm], race.chosen[norm].rate, *numbers, len(exponents) - len(known)]


def _sentence(
    effects: Mapping[str, Effect], pairs: Mapping[str, Pairs], verdicts: Mapping[str, Verdict], every: Sequence[Race]
) -> str:
    if not any(race.room.holds and race.matched for race in every):
        return "no network has room: without normalization it does not train, or it reaches the target at once"
    return (
        "the largest learning rate with BatchNorm over that without: "
        + ", ".join(_shown(name, effects.get(name), of, verdicts[name]) for name, of in pairs.items())
        + without_room(every)
    )


def _shown(name: str, effect: Effect | None, pairs: Pairs, verdict: Verdict) -> str:
    """Say a network's ratio, or why it has none."""
    ends = f"{pairs.censored} of {len(pairs.each)} pairs end at the grid's edge"
    if effect is None:
        more, less = pairs.certain
        return f"{name} no ratio, {ends}; certainly above twice in {more}, below half in {less} ({verdict})"
    left_out = f"; {ends} and are left out" if pairs.censored else ""
    return f"{name} {effect.value:.1f} times [{effect.low:.1f}, {effect.high:.1f}] ({verdict}{left_out})"


def _picture(with_room: Sequence[Race], seeds: Sequence[int], top: Top) -> Picture:
    series = []
    for norm in ARMS:
        rates = [
            [2.0**exponent for seed in seeds if (exponent := top[race.name, norm, seed]) is not None]
            for race in with_room
        ]
        series.append(
            Series(
                NORMS[norm],
                [race.name for race in with_room],
                [median(of) if of else None for of in rates],
                [min(of) if of else None for of in rates],
                [max(of) if of else None for of in rates],
            )
        )
    return Picture(
        "Largest learning rate that reaches the target",
        "On a grid of powers of two; median and range over the replicates in which some rate works.",
        "bar",
        Axis("network"),
        Axis("learning rate", log=True),
        series,
        [Line("y", 1.0, "learning rate 1")],
    )
