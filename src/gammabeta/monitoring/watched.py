"""The record of a watched training: rules that see W read it, and the health page shows it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

# Quantities recorded for a norm at a measured step, with their meanings.
QUANTITIES = {
    "mean": "root mean square over channels of the running mean",
    "std": "square root of the running variance's mean over channels",
    "drift": "distance of the running statistics from those of the previous measured step, in standard deviations",
    "gap": "distance of the batch's statistics from the running ones, in standard deviations",
    "effective": "effective number of values behind a batch statistic",
    "updates": "updates of the running statistics per step",
    "domains": "squared difference of two forwards' means in one step, relative to what sampling explains",
    "apart": "the same difference in standard deviations",
    "weight_grad": "norm of γ's gradient",
    "bias_grad": "norm of β's gradient",
    "dead": "number of channels whose γ is 0 or whose batch variance is below ε",
}
# Measured steps that are kept; above that, every second one is dropped.
MOST = 256


@dataclass
class History:
    """Values by step, at most `MOST` of each.

    When a history is full, every second value is dropped, and from then on every second new one is left out.

    Attributes:
        steps: the steps that were measured.
        columns: by name, one value for each of `steps`; NaN where there was none.
        stride: one of this many measured steps is kept.
    """

    steps: list[int] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=dict)
    stride: int = 1
    _offered: int = 0

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a measured step, by name."""
        self._offered += 1
        if (self._offered - 1) % self.stride:
            return
        for name in values.keys() - self.columns.keys():
            self.columns[name] = [math.nan] * len(self.steps)
        self.steps.append(step)
        for name, column in self.columns.items():
            column.append(values.get(name, math.nan))
        if len(self.steps) >= MOST:
            self.stride *= 2
            self.steps = self.steps[::2]
            self.columns = {name: column[::2] for name, column in self.columns.items()}

    def known(self, name: str) -> list[float]:
        """Return the values that are not NaN, in order."""
        return [value for value in self.columns.get(name, []) if not math.isnan(value)]

    def median(self, name: str, last: int = 32) -> float | None:
        """Return the median of the last `last` values that are not NaN; None if there is none."""
        values = self.known(name)[-last:]
        return statistics.median(values) if values else None


@dataclass
class WatchedNorm:
    """Counts and measurements of one norm.

    Attributes:
        name: its qualified name.
        calls: forwards in training with gradients on, recomputations excluded.
        without_gradient: forwards in training with gradients off that moved its running statistics.
        recomputed: forwards inside a backward.
        moved_again: those of the recomputed forwards that moved its running statistics once more.
        backwards: backward passes that reached γ or β; None where neither trains.
        parts: calls that had a backward pass between them and the call before.
        samples: samples in the last batch measured.
        history: its measurements by step.
    """

    name: str
    calls: int = 0
    without_gradient: int = 0
    recomputed: int = 0
    moved_again: int = 0
    backwards: int | None = None
    parts: int = 0
    samples: int = 0
    history: History = field(default_factory=History)

    @property
    def polluting(self) -> int:
        """Number of forwards with gradients off that no recomputation followed.

        Reentrant checkpointing begins with a forward with gradients off; those are not counted.
        """
        return max(0, self.without_gradient - self.recomputed)


@dataclass
class RankRecord:
    """Record of one process at a measured step.

    Attributes:
        calls: by synchronized layer, how often it was called up to that step.
        distance: by BatchNorm, how far its running statistics are from this process's, in standard deviations.
    """

    calls: dict[str, int]
    distance: dict[str, float] = field(default_factory=dict)


@dataclass
class Watched:
    """The record of a watched training.

    Attributes:
        every: steps between measured ones.
        steps: optimizer steps so far.
        norms: the norms' records, by qualified name.
        inputs: measurements of the model's input by step. "order" is the variance between batches divided by what
            shuffled ones would have. "apart" is the standard deviation between batches in standard deviations of the
            data. "changed" is the number of forwards that began with other parameters than the forward before in the
            same step; it is there for steps of several forwards.
        first: name of the BatchNorm that was called first.
        rank: this process.
        rank_step: the measured step at which the processes are compared.
        ranks: the records of all processes at that step, by rank; empty if there is one process.
        unseen: norms whose running statistics moved although no hook saw a call: compiled ones.
    """

    every: int
    steps: int = 0
    norms: dict[str, WatchedNorm] = field(default_factory=dict)
    inputs: History = field(default_factory=History)
    first: str | None = None
    rank: int = 0
    rank_step: int = -1
    ranks: dict[int, RankRecord] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
