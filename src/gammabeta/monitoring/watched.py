"""What was recorded while a model trained: what the rules that see W look at, and what the health report shows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

# What is recorded of a norm at a measured step, and what it is.
QUANTITIES = {
    "mean": "root mean square over channels of the running mean",
    "std": "root of the running variance's mean over channels",
    "drift": "how far the running statistics went since the step measured before, in standard deviations",
    "gap": "how far the batch's statistics are from the running ones, in standard deviations",
    "effective": "effective number of values of a batch statistic",
    "updates": "movements of the running statistics for each step",
    "domains": "squared difference of two forwards' means in one step, over what sampling gives",
    "apart": "the same difference in standard deviations",
    "weight_grad": "norm of γ's gradient",
    "bias_grad": "norm of β's gradient",
    "dead": "channels whose γ is 0 or whose batch variance is under ε",
}
# Measured steps that are kept; beyond, every second one is given up.
MOST = 256


@dataclass
class History:
    """Values by step, at most `MOST` of each: when it is full every second is dropped, and every second left out.

    Attributes:
        steps: when they were measured.
        columns: by name, one value for each of `steps`; NaN where there was none.
        stride: of so many measured steps one is kept.
    """

    steps: list[int] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=dict)
    stride: int = 1
    _offered: int = 0

    def add(self, step: int, values: Mapping[str, float]) -> None:
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
        """The values that there were, in order."""
        return [value for value in self.columns.get(name, []) if not math.isnan(value)]

    def median(self, name: str, last: int = 32) -> float | None:
        """The median of the last values; None where there was none."""
        values = self.known(name)[-last:]
        return statistics.median(values) if values else None


@dataclass
class WatchedNorm:
    """What a norm did.

    Attributes:
        name: its qualified name.
        calls: forwards in training that gradients flow back from.
        without_gradient: forwards in training with gradients off that moved its running statistics.
        recomputed: forwards inside a backward.
        moved_again: those of them that moved its running statistics once more.
        backwards: backwards that reached γ or β; None where neither trains.
        parts: how often it was called with a backward since the call before.
        samples: of a batch, the last one measured.
        history: its numbers by step.
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
        """Forwards with gradients off that no recomputation followed: checkpoints of the old kind begin with those."""
        return max(0, self.without_gradient - self.recomputed)


@dataclass
class RankRecord:
    """What a process told the others at a measured step.

    Attributes:
        calls: of synchronized layers, how often each was called up to that step.
        distance: by BatchNorm, how far its running statistics are from this process's, in standard deviations.
    """

    calls: dict[str, int]
    distance: dict[str, float] = field(default_factory=dict)


@dataclass
class Watched:
    """What was recorded.

    Attributes:
        steps: optimizer steps so far.
        every: the interval of measured steps.
        norms: by qualified name.
        inputs: of the model's input, by step: "order", the variance between batches over what shuffled ones would have,
            and "apart", the standard deviation between batches in standard deviations of the data.
        first: the BatchNorm that was called first.
        rank: this process.
        rank_step: the measured step that the processes are compared at.
        ranks: by rank, what the processes said of that step; this one's too. Empty where there is one process.
        unseen: norms whose running statistics moved though no hook saw a call: compiled ones.
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
