"""Learning rates: the best one for each arm, and the largest one that still works, on a grid of powers of two."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.trials.trial import Trial

Arm = Mapping[str, Any]
Score = Callable[[dict[str, Any]], float]

# Exponents of 2. Every fourth rate first, then the best one's neighbours until both are worse.
COARSE = (-5, -3, -1)
LOWEST, HIGHEST, HIGHEST_TRIED = -16, 10, 20


def tune(
    experiment: Experiment,
    arms: Sequence[Arm],
    score: Score,
    make: Callable[[Arm, int], Trial] | None = None,
    coarse: Sequence[int] = COARSE,
    tuning: Sequence[int] = (),
) -> list[int]:
    """The exponent of each arm's best rate: the lowest score on the tuning seed, or the lowest mean over several.

    Every fourth rate is tried first; then the neighbours of the best, a factor 2 away, until the best one has both its
    neighbours tried. An optimum at the edge of the grid therefore widens it. Ties go to the smaller rate.

    Args:
        arms: settings of a training trial but for ``rate`` and ``seed``.
        score: of a trial's result, lower is better.
        make: an arm's trial at an exponent, where it is not one of ``experiment.train``.
        coarse: the exponents that are tried first.
        tuning: the seeds of ``experiment.train`` to tune on, for a claim that the luck of one would decide; no part of
            an interval over seeds knows of it. With ``make`` none.
    """
    assert make is None or not tuning, "make decides the seed"
    several = tuning or [experiment.tuning_seed]

    def trials_of(arm: Arm, exponent: int) -> list[Trial]:
        if make is not None:
            return [make(arm, exponent)]
        return [experiment.train(**arm, rate=2.0**exponent, seed=seed) for seed in several]

    scores: list[dict[int, float]] = [{} for _ in arms]
    wanted = [set(coarse) for _ in arms]
    while any(wanted):
        asked = [(index, exponent) for index, exponents in enumerate(wanted) for exponent in sorted(exponents)]
        trials = [trials_of(arms[index], exponent) for index, exponent in asked]
        results = iter(experiment.run([trial for of_rate in trials for trial in of_rate]))
        for (index, exponent), of_rate in zip(asked, trials, strict=True):
            scores[index][exponent] = mean(score(next(results)) for _ in of_rate)
        for index, known in enumerate(scores):
            best = best_exponent(known)
            wanted[index] = {e for e in (best - 1, best + 1) if LOWEST <= e <= HIGHEST} - known.keys()
    return [best_exponent(known) for known in scores]


def at_best(
    experiment: Experiment,
    arms: Mapping[str, Arm],
    score: Score,
    seeds: Sequence[int],
    report: str | None = None,
    **search: Any,
) -> tuple[dict[str, int], dict[str, list[dict[str, Any]]]]:
    """Each arm's best exponent, and its results at that rate on every seed.

    Args:
        arms: by name, as :func:`tune` takes them.
        report: the split that these results are taken from; None for the arms' own.
        search: ``coarse`` and ``tuning``, as :func:`tune` takes them.
    """
    best = tune(experiment, list(arms.values()), score, **search)
    exponents = dict(zip(arms, best, strict=True))
    after = {} if report is None else {"report": report}

    def trial(name: str, seed: int) -> Trial:
        return experiment.train(**{**arms[name], **after}, rate=2.0 ** exponents[name], seed=seed)

    return exponents, experiment.grid(list(arms), seeds, trial)


def error_then_loss(result: Mapping[str, Any]) -> float:
    """Error; between equal errors the lower loss."""
    loss = result["loss"]
    return float(result["error"]) + 1e-3 * min(100.0 if loss is None else float(loss), 100.0)


def best_exponent(scores: Mapping[int, float]) -> int:
    return min(scores, key=lambda exponent: (scores[exponent], exponent))


def largest(
    experiment: Experiment,
    arms: Sequence[Arm],
    start: Sequence[int],
    works: Callable[[dict[str, Any]], bool],
) -> list[int | None]:
    """The exponent of the largest rate at which each arm (with its ``seed``) works.

    From ``start`` upwards until two rates in a row fail; where ``start`` itself and the next fail, downwards to the
    first that works. None: nothing works down to 2⁻¹⁶.
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
