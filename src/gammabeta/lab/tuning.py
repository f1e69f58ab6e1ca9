"""Learning rates on a grid of powers of two: each arm's best one, and the largest one that still works."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, TypeVar

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.trials.trial import Trial

Arm = Mapping[str, Any]
Score = Callable[[dict[str, Any]], float]
Name = TypeVar("Name", bound=Hashable)

# Exponents of 2. Every fourth learning rate first, then the best one's neighbours, until both are worse.
COARSE = (-5, -3, -1)
LOWEST, HIGHEST, HIGHEST_TRIED = -16, 10, 20


@dataclass(frozen=True)
class Grid:
    """A search on a grid of powers of two.

    Attributes:
        exponents: those that are tried first.
        widest: the search is extended by factors of 2 until, on both sides, some rate is worse than the best by more
            than this, and has no gaps in between; None where only the best and its neighbours matter.
        shorter: settings of the search's trials that differ from the arms', such as fewer steps.
    """

    exponents: Sequence[int] = COARSE
    widest: float | None = None
    shorter: Mapping[str, Any] | None = None


def tune(
    experiment: Experiment,
    arms: Sequence[Arm],
    score: Score,
    make: Callable[[Arm, int], Trial] | None = None,
    coarse: Sequence[int] = COARSE,
    tuning: Sequence[int] = (),
) -> list[int]:
    """Find the exponent of 2 of each arm's best learning rate: the one with the lowest score.

    Every fourth rate is tried first; then the neighbours of the best, a factor of 2 away, until both neighbours of the
    best one have been tried. An optimum at the edge of the grid therefore widens it. Ties go to the smaller rate.

    Args:
        arms: settings of a training trial, without ``rate`` and ``seed``.
        score: of a trial's result; lower is better.
        make: makes an arm's trial at an exponent, where it is not one of ``experiment.train``.
        coarse: the exponents that are tried first.
        tuning: the seeds to tune on, whose mean score counts; the tuning seed by default. Several are for claims that
            the luck of one seed would decide: no interval over result seeds accounts for that luck. Empty with
            ``make``, which decides the seed.
    """
    assert make is None or not tuning, "make decides the seed"

    def trial(cell: tuple[int, int], seed: int) -> Trial:
        index, exponent = cell
        if make is not None:
            return make(arms[index], exponent)
        return experiment.train(**arms[index], rate=2.0**exponent, seed=seed)

    cells = list(range(len(arms)))
    seeds = tuning or [experiment.tuning_seed]
    scores = scores_on_grid(
        experiment, cells, seeds, score, lambda index, exponent, seed: trial((index, exponent), seed), Grid(coarse)
    )
    return [best_exponent(known) for known in scores]


def scores_on_grid(
    experiment: Experiment,
    arms: Sequence[Name],
    seeds: Sequence[int],
    score: Score,
    trial: Callable[[Name, int, int], Trial],
    grid: Grid,
) -> list[dict[int, float]]:
    """Score every arm on a grid of exponents of 2, as :func:`tune` does, and return the mean scores by exponent.

    Args:
        arms: their names.
        seeds: over which scores are averaged.
        trial: makes the trial of (name, exponent, seed).
        grid: where to search; ``shorter`` is left to ``trial``.
    """
    scores: list[dict[int, float]] = [{} for _ in arms]
    wanted = [set(grid.exponents) for _ in arms]
    while any(wanted):
        cells = [(place, exponent) for place, exponents in enumerate(wanted) for exponent in sorted(exponents)]
        found = experiment.grid(cells, seeds, lambda cell, seed: trial(arms[cell[0]], cell[1], seed))
        for (place, exponent), results in found.items():
            scores[place][exponent] = mean(score(result) for result in results)
        wanted = [_around(known, grid.widest) - known.keys() for known in scores]
    return scores


def _around(known: Mapping[int, float], widest: float | None) -> set[int]:
    """Return the exponents that a search needs next to what it knows."""
    best = best_exponent(known)
    needed = {best - 1, best + 1}
    if widest is not None:
        for side in (-1, 1):
            exponent = best
            while exponent in known and known[exponent] <= known[best] + widest:
                exponent += side
            needed.add(exponent)
    return {exponent for exponent in needed if LOWEST <= exponent <= HIGHEST}


def at_best(
    experiment: Experiment,
    arms: Mapping[str, Arm],
    score: Score,
    seeds: Sequence[int],
    report: str | None = None,
    **search: Any,
) -> tuple[dict[str, int], dict[str, list[dict[str, Any]]]]:
    """Find each arm's best exponent, and return it with the arm's results at that rate, one per seed.

    Args:
        arms: by name, as :func:`tune` takes them.
        report: the split that these results are taken from; None for the one that the arms name.
        search: ``coarse`` and ``tuning``, as :func:`tune` takes them.
    """
    best = tune(experiment, list(arms.values()), score, **search)
    exponents = dict(zip(arms, best, strict=True))
    after = {} if report is None else {"report": report}

    def trial(name: str, seed: int) -> Trial:
        return experiment.train(**{**arms[name], **after}, rate=2.0 ** exponents[name], seed=seed)

    return exponents, experiment.grid(list(arms), seeds, trial)


def error_then_loss(result: Mapping[str, Any]) -> float:
    """Score a result by its error, and equal errors by their losses."""
    loss = result["loss"]
    return float(result["error"]) + 1e-3 * min(100.0 if loss is None else float(loss), 100.0)


def deployed(result: Mapping[str, Any]) -> float:
    """Score a result by its error as deployed, with moving averages; equal errors by their losses."""
    loss = result["moving_loss"]
    return float(result["moving_error"]) + 1e-6 * min(100.0 if loss is None else float(loss), 100.0)


def best_exponent(scores: Mapping[int, float]) -> int:
    return min(scores, key=lambda exponent: (scores[exponent], exponent))


def largest(
    experiment: Experiment,
    arms: Sequence[Arm],
    start: Sequence[int],
    works: Callable[[dict[str, Any]], bool],
) -> list[int | None]:
    """Find the exponent of the largest learning rate at which each arm (with its ``seed``) works.

    The search goes up from ``start`` until two rates in a row fail. Where ``start`` and the next one fail, it goes down
    to the first that works. None means that nothing works down to 2⁻¹⁶.
    """
    outcomes: list[dict[int, bool]] = [{} for _ in arms]
    wanted = [{exponent, exponent + 1} for exponent in start]
    while any(wanted):
        asked = [(index, exponent) for index, exponents in enumerate(wanted) for exponent in sorted(exponents)]
        trials = [experiment.train(**arms[index], rate=2.0**exponent) for index, exponent in asked]
        for (index, exponent), result in zip(asked, experiment.run(trials), strict=True):
            outcomes[index][exponent] = works(result)
        wanted = [_next(known) for known in outcomes]
    return [max((exponent for exponent, good in known.items() if good), default=None) for known in outcomes]


def _next(known: Mapping[int, bool]) -> set[int]:
    top, bottom = max(known), min(known)
    if any(known.values()):
        over = known[top] or known[top - 1]
        return {top + 1} if over and top < HIGHEST_TRIED else set()
    return {bottom - 1} if bottom > LOWEST else set()
