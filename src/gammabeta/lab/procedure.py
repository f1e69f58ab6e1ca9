"""A replicate is the whole procedure: split the data, tune on validation, train, report the test error.

Replicate r has its own split, its own initialization and order, and chooses its own learning rate on its own validation
split: ½, 1 or 2 times a centre that a coarse search on further replicates found. Tuning luck is thereby within the
intervals over replicates (Bouthillier et al. 2021, Accounting for Variance in Machine Learning Benchmarks).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.trials.trial import Trial
from gammabeta.lab.tuning import COARSE, HIGHEST, LOWEST, Grid, best_exponent, error_then_loss, scores_on_grid

Arm = TypeVar("Arm", bound=Hashable)
Settings = Mapping[str, Any]
Make = Callable[[Settings, int, int, str], Trial]

# Replicates only of the coarse search: no result is taken from them.
COARSE_REPLICATES = 3
NEIGHBOURS = (-1, 0, 1)
# The centre moves where more than this share of an arm's replicates choose the same edge of the three rates.
SHARE_AT_EDGE = 1 / 3
MOST_MOVES = 4


@dataclass(frozen=True)
class Chosen:
    """An arm's results, each at the learning rate that its replicate chose.

    Attributes:
        results: of the test split, one per replicate.
        exponents: of 2, of each replicate's learning rate.
        centre: the exponent of the middle one of the three rates.
        coarse: the mean score of the coarse search by exponent; lower is better.
        lost: the exponents at which some run of the coarse search was not finite; empty without ``Grid.widest``.
        settled: False where replicates still crowd at an edge after the centre has moved ``MOST_MOVES`` times, or at
            the end of the grid.
    """

    results: list[dict[str, Any]]
    exponents: list[int]
    centre: int
    coarse: dict[int, float]
    lost: frozenset[int] = frozenset()
    settled: bool = True

    @property
    def rate(self) -> float:
        """The learning rate that most replicates chose; of equally many, the smaller one."""
        return float(2.0**self.usual_exponent)

    @property
    def usual_exponent(self) -> int:
        """The exponent of ``rate``."""
        counts = {exponent: self.exponents.count(exponent) for exponent in sorted(self.exponents)}
        return max(counts, key=lambda exponent: counts[exponent])


def choose_rates(
    experiment: Experiment,
    arms: Mapping[Arm, Settings],
    replicates: Sequence[int],
    score: Callable[[dict[str, Any]], float] = error_then_loss,
    coarse: Sequence[int] | Grid = COARSE,
    make: Make | None = None,
) -> dict[Arm, Chosen]:
    """Run the whole procedure for every arm and replicate.

    The coarse search looks at every fourth rate, then at the neighbours of the best by a factor of 2, on
    ``COARSE_REPLICATES`` replicates of its own. Then every replicate trains at three rates and chooses by its
    validation split. If over a third of an arm's replicates choose the same edge, the centre moves there, and the arm
    runs again. Only validation results decide that; the test results of the chosen runs are looked at afterwards.

    Args:
        arms: settings of a training trial by name, without ``rate``, ``seed`` and ``report``.
        replicates: numbers, each of which seeds a split, an initialization and an order.
        score: of a validation result; lower is better.
        coarse: the exponents of 2 that the search begins with, or the whole description of the search. With
            ``widest`` it serves `headroom`.
        make: makes the trial of (settings, exponent, replicate, split to report), where it is not one of
            ``experiment.train``. Its results have ``validation`` where the test split is reported, as those of
            `gammabeta.lab.images.training.train`. Where that is missing or None, ``score`` is given the result itself:
            for quantities that are not measured on a test split, such as the steps to a validation target.
    """

    search = coarse if isinstance(coarse, Grid) else Grid(coarse)

    def trial(name: Arm, exponent: int, replicate: int, report: str) -> Trial:
        settings = {**arms[name], **(search.shorter or {})} if report == "validation" else arms[name]
        if make is not None:
            return make(settings, exponent, replicate, report)
        return experiment.train(**settings, rate=2.0**exponent, seed=replicate, report=report)

    names = list(arms)
    searched = experiment.coarse_replicates(COARSE_REPLICATES)
    grids = scores_on_grid(
        experiment, names, searched, score, lambda name, exponent, r: trial(name, exponent, r, "validation"), search
    )  # fmt: skip
    centres = {name: best_exponent(grid) for name, grid in zip(names, grids, strict=True)}
    runs: dict[Arm, dict[int, list[dict[str, Any]]]] = {name: {} for name in names}
    picked: dict[Arm, list[int]] = {}
    been = {name: {centre} for name, centre in centres.items()}
    waiting = names
    while waiting:
        wanted = [
            (name, exponent) for name in waiting for exponent in _three(centres[name]) if exponent not in runs[name]
        ]
        found = experiment.grid(wanted, replicates, lambda cell, r: trial(cell[0], cell[1], r, "test"))
        for (name, exponent), results in found.items():
            runs[name][exponent] = results
        moved = []
        for name in waiting:
            picked[name] = _choices({e: runs[name][e] for e in _three(centres[name])}, score)
            centre = _moved(centres[name], picked[name])
            # A centre that was left before is not taken again: between two equally good rates it would move for ever.
            if centre not in been[name] and len(been[name]) <= MOST_MOVES and LOWEST < centre < HIGHEST:
                been[name].add(centre)
                centres[name] = centre
                moved.append(name)
        waiting = moved
    chosen = {
        name: Chosen(
            [runs[name][exponent][place] for place, exponent in enumerate(picked[name])],
            picked[name],
            centres[name],
            dict(sorted(grid.items())),
            settled=_moved(centres[name], picked[name]) in been[name],
        )
        for name, grid in zip(names, grids, strict=True)
    }
    if search.widest is None:
        return chosen
    tried = [(name, e) for name, of in chosen.items() for e in sorted({*of.coarse, of.usual_exponent + 1})]
    again = experiment.grid(tried, searched, lambda cell, r: trial(cell[0], cell[1], r, "validation"))
    lost = {cell for cell, results in again.items() if any(is_lost(result) for result in results)}
    return {
        name: replace(of, lost=frozenset(exponent for arm, exponent in lost if arm == name))
        for name, of in chosen.items()
    }


def is_lost(result: Mapping[str, Any]) -> bool:
    """Whether a run's loss was not finite, in training or at its end."""
    return result.get("diverged") is not None or result.get("loss", 0.0) is None


def headroom(coarse: Mapping[int, float], margin: float) -> int:
    """Count the learning rates on the factor-2 grid whose score lies within ``margin`` of the best.

    Only what was tried counts: a search with ``Grid.widest`` has tried every rate between two ends that are outside.
    """
    least = min(coarse.values())
    return sum(score <= least + margin for score in coarse.values())


def _three(centre: int) -> list[int]:
    return [centre + step for step in NEIGHBOURS]


def _choices(runs: Mapping[int, Sequence[dict[str, Any]]], score: Callable[[dict[str, Any]], float]) -> list[int]:
    """Return the exponent that each replicate chooses by its validation split."""
    count = len(next(iter(runs.values())))
    return [
        best_exponent(
            {exponent: score(results[place].get("validation") or results[place]) for exponent, results in runs.items()}
        )
        for place in range(count)
    ]


def _moved(centre: int, chosen: Sequence[int]) -> int:
    """Return the edge that over a third of the replicates chose, or the centre where there is none.

    Where both edges have that many, the better known centre stays.
    """
    at = {edge: chosen.count(edge) / len(chosen) for edge in (centre - 1, centre + 1)}
    over = [edge for edge, share in at.items() if share > SHARE_AT_EDGE]
    return over[0] if len(over) == 1 else centre
