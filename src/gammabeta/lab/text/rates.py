"""Decoders over a whole grid of learning rates: how wide the range of usable ones is, and each replicate's choice.

The grid has factors of 2. It is extended until both of its ends are worse than the best rate by more than a margin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.procedure import headroom
from gammabeta.lab.text.training import RATES, make
from gammabeta.lab.tuning import Grid as Search
from gammabeta.lab.tuning import best_exponent, scores_on_grid


@dataclass(frozen=True)
class Width:
    """A range of usable learning rates in factors of 2; ``open`` where the grid ends before the range does."""

    factors: float
    open: bool


@dataclass(frozen=True)
class Grid:
    """One arm's results of the test split, by the exponent of 2 of the learning rate, one per replicate."""

    results: Mapping[int, Sequence[Mapping[str, Any]]]

    def validation(self, exponent: int) -> list[float]:
        return [float(result["validation"]["loss"]) for result in self.results[exponent]]

    def means(self) -> dict[int, float]:
        """Return the mean validation loss by exponent."""
        return {exponent: fmean(self.validation(exponent)) for exponent in sorted(self.results)}

    def usable(self, margin: float) -> int:
        """Count the rates whose mean validation loss lies within ``margin`` of the best."""
        return headroom(self.means(), margin)

    @property
    def best(self) -> int:
        """The exponent of the best rate, by the mean validation loss."""
        return best_exponent(self.means())

    def chosen(self) -> tuple[list[int], list[Mapping[str, Any]]]:
        """Return each replicate's own choice by its validation split: the exponents, and the results of the test."""
        count = len(next(iter(self.results.values())))
        exponents = [best_exponent({e: self.validation(e)[place] for e in self.results}) for place in range(count)]
        return exponents, [self.results[exponent][place] for place, exponent in enumerate(exponents)]

    def widths(self, margin: float) -> list[Width]:
        """Return each replicate's range of rates within ``margin`` of its best, interpolated between grid points."""
        count = len(next(iter(self.results.values())))
        return [width({e: self.validation(e)[place] for e in self.results}, margin) for place in range(count)]


def width(losses: Mapping[int, float], margin: float) -> Width:
    """Return log2 of the largest usable learning rate over the smallest one, around the best.

    Between the last rate within the margin and the first one outside, the loss is taken to be linear in the exponent.
    """
    best = best_exponent(losses)
    limit, edges, is_open = losses[best] + margin, [], False
    for side in (-1, 1):
        exponent = best
        while exponent + side in losses and losses[exponent + side] <= limit:
            exponent += side
        inside, outside = losses[exponent], losses.get(exponent + side)
        is_open |= outside is None
        part = 0.0 if outside is None else (limit - inside) / (outside - inside)
        edges.append(exponent + side * part)
    return Width(edges[1] - edges[0], is_open)


def on_grid(
    experiment: Experiment, arms: Mapping[str, Mapping[str, Any]], replicates: Sequence[int], margin: float
) -> dict[str, Grid]:
    """Train every arm at every rate of its grid; each replicate has its own split, initialization and windows.

    Args:
        arms: by name, the settings of `gammabeta.lab.text.training.Run` without task, rate, seed and report.
    """
    names = list(arms)

    def trial(name: str, exponent: int, replicate: int) -> Any:
        return make(experiment, arms[name], exponent, replicate, "test")

    scores = scores_on_grid(
        experiment, names, replicates, lambda result: float(result["validation"]["loss"]), trial, Search(RATES, margin)
    )
    cells = [(name, exponent) for name, of_arm in zip(names, scores, strict=True) for exponent in sorted(of_arm)]
    found = experiment.grid(cells, replicates, lambda cell, replicate: trial(*cell, replicate))
    return {name: Grid({exponent: found[name, exponent] for arm, exponent in cells if arm == name}) for name in names}
