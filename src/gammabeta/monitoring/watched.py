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
    "aside": "squared difference of the means of forwards with gradients and without, relative to what sampling gives",
    "aside_apart": "the same difference in standard deviations",
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
        guiding: those of the parts whose forward had inputs that require gradients, as a generator's loss has.
        samples: samples in the last batch measured.
        evaluation_steps: steps since the last forward in training mode, in which forwards with gradients all ran in
            evaluation mode.
        stepped: whether γ or β were written to since the watch began.
        rewrites: measured steps since which γ or β had changed at the next, counted while no backward has reached them:
            a moving average of another part, for example.
        history: its measurements by step.
    """

    name: str
    calls: int = 0
    without_gradient: int = 0
    recomputed: int = 0
    moved_again: int = 0
    backwards: int | None = None
    parts: int = 0
    guiding: int = 0
    samples: int = 0
    evaluation_steps: int = 0
    stepped: bool = False
    rewrites: int = 0
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


@dataclass(frozen=True)
class Explosion:
    """Updates that made parameters too large.

    Attributes:
        parameter: the largest.
        before, now: its largest absolute value before, and after; infinite if it is not finite.
        first, last: the steps of the first and of the last update that may have done it.
        rate, rate_step: the highest learning rate of these, and its step; None if it is not known.
        where: the module of the parameters that exploded; None if they are of several.
        finite_gradients: whether parameters that are not finite are so although their gradients were finite.
    """

    parameter: str
    before: float
    now: float
    first: int
    last: int
    rate: float | None = None
    rate_step: int | None = None
    where: str | None = None
    finite_gradients: bool = False

    def __str__(self) -> str:
        by = f"the update of step {self.last}"
        if self.first < self.last:
            by = f"the updates of steps {self.first} to {self.last}"
        text = f"{by} made parameters explode"
        if math.isfinite(self.now):
            text += f": the largest, {self.parameter}, was {self.before:.2g} before and {self.now:.2g} after"
        elif self.finite_gradients:
            text += ", although the gradients were finite"
        if self.rate is not None:
            at = f" in step {self.rate_step}" if self.first < self.last else ""
            text += f"; the learning rate was {self.rate:g}{at}"
        return text


@dataclass
class Divergence:
    """Where and when a training stopped being finite.

    Attributes:
        step: the step in which the first values that are not finite were seen.
        cause: "inputs": the model was given them. "forward": a module made them of finite inputs, parameters being
            finite. "update": that step's update left parameters that are not finite, although its outputs were.
            "explosion": updates made the parameters so large that they, or the outputs, were not finite. "unknown": it
            was not seen where.
        where: qualified name of the module: that of the forward, or the last one with such parameters; None if it is
            not known, or if all parameters are such.
        parameters, of: number of parameters that were not finite at that time, and of all.
        last_finite: the last step whose outputs were seen to be finite, −∞ apart; None if there is none.
        below: whether those outputs held −∞.
        forwards, bad: number of forwards seen since then, that one included, and how many of them were not finite.
        recovered: whether the last forward seen was finite again: the batch was skipped, or a checkpoint was loaded.
        between: the place of the operation in the forward of `where` that did it, in words; "" if a module did.
        earliest: the first step in which it may have begun, if none was looked at from there to `step`.
        explosion: the updates that made the parameters explode.
    """

    step: int
    cause: str
    where: str | None = None
    parameters: int = 0
    of: int = 0
    last_finite: int | None = None
    below: bool = False
    forwards: int = 0
    bad: int = 0
    recovered: bool = False
    between: str = ""
    earliest: int | None = None
    explosion: Explosion | None = None

    @property
    def title(self) -> str:
        """The finding in one short sentence."""
        at = f"at step {self.step}"
        if self.earliest is not None:
            at = f"between steps {self.earliest} and {self.step}"
        if self.explosion is not None and not self.recovered:
            inside = "" if self.where is None else f" in {self.where}"
            return f"Training diverged {at}: an update made parameters explode{inside}"
        what = "The model was given values that are not finite" if self.cause == "inputs" else "Training diverged"
        what = "Outputs were not finite" if self.recovered and self.cause != "inputs" else what
        last = f" in {self.where}" if self.cause == "update" else f", first at {self.where}"
        return f"{what} {at}{last if self.where else ''}"

    def __str__(self) -> str:
        if self.cause == "inputs":
            text = f"at step {self.step} the model was given inputs that are not finite"
        elif self.explosion is not None:
            text = f"from step {self.step} on the outputs were not finite"
            if self.parameters:
                text = f"{self.parameters} of {self.of} parameters were not finite after step {self.step}{self._unseen}"
            text += f": {self.explosion}"
        elif self.cause == "forward":
            text = f"from step {self.step} on the outputs were not finite, with finite inputs and parameters"
            text += ": this module is the first whose inputs were finite and whose outputs were not" * bool(self.where)
            text += f"; {self.between}" * bool(self.between)
        elif self.cause == "update":
            text = f"{self.parameters} of {self.of} parameters were not finite after step {self.step}{self._unseen}"
            if self.last_finite == self.step and not self.below:
                text += ", although its outputs were: its loss or a gradient was not"
            elif self.last_finite == self.step:
                text += ": its outputs held −∞"
            text += "; this module is the last of them, so the gradient went wrong there or right behind" * bool(
                self.where
            )
        else:
            text = f"from step {self.step} on values were not finite"
        if self.forwards > self.bad:
            later = self.forwards - 1
            text += f"; {self.forwards - self.bad} of the {later} forward{'s' * (later != 1)} after that were finite"
        return text

    @property
    def _unseen(self) -> str:
        """Since when it may have been so, in words; "" if the step is exact."""
        if self.earliest is None:
            return ""
        known = f"after step {self.earliest - 1}" if self.earliest else "at the start"
        return f" and finite {known}, with no forward seen in between"


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
        model: name of the model's class.
        divergence: when and where it stopped being finite; None if it did not.
        training_steps: steps with a forward in training mode.
        evaluation_steps: steps whose forwards with gradients all ran with the whole model in evaluation mode.
        evaluation_after_training: those of them that came after a step in training mode.
        first_evaluation: the first of these; of all, if there is none.
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
    model: str = ""
    divergence: Divergence | None = None
    training_steps: int = 0
    evaluation_steps: int = 0
    evaluation_after_training: int = 0
    first_evaluation: int | None = None
