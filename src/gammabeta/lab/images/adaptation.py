"""Pretrained networks that are adapted to a few images of a target: the trials, and their grid.

The claims on fine-tuning, of all parameters or only of γ and β, share them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from gammabeta.lab.answers import precision_of
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images import adaptation_together
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.training import chance
from gammabeta.lab.images.transfer import TARGETS, linear_accuracies, pretraining_rates, transfer
from gammabeta.lab.outcome import Criterion, Effect, Room, Table
from gammabeta.lab.paired import differences
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.trials.trial import Trial, versioned

ARMS = {
    "all": "all trained, batch statistics",
    "frozen": "all trained, statistics frozen",
    "frozen_all": "whole norm frozen, the rest trained",
    "recalibrated": "all trained, statistics recalibrated and frozen",
    "group": "GroupNorm, all trained",
    "affine": "γ, β and head trained, statistics frozen",
    "head": "only the head trained, statistics frozen",
    "untrained": "no training",
}
# The search for a learning rate begins here: with frozen statistics the rates that work are small.
COARSE = (-8, -6, -4)
# A pretrained network is strong if it is at most this many points below a linear classifier on the same images.
STRONG = 2.0
Key = tuple[str, str]  # name of the cell, arm


@versioned(1, together="gammabeta.lab.images.adaptation_together")
def adapted(**settings: Any) -> dict[str, Any]:
    """Adapt one network, by the recipe.

    Args:
        settings: the fields of :class:`gammabeta.lab.images.adaptation_together.Adaptation`.

    Returns:
        A dict with:

        - ``error``, ``loss``: on the reported split, with the layers' running statistics. The arm ``"all"`` is also
          evaluated with exact statistics of its training images. Whichever has the better validation result counts,
          because with few images neither is always right.
        - ``validation``: error and loss on the validation split, where the test split is reported; otherwise None.
        - ``wrong``: which test images were answered wrongly, where all splits share them; otherwise None.
        - ``recalibrated``: whether exact statistics were taken.
        - ``moving_error``: with the layers' running statistics.
        - ``source_accuracy``: of the pretrained network on what it was trained for.
    """
    return adaptation_together.adapted([settings])[0]


@dataclass(frozen=True)
class Cell:
    """A network, a target, how many images per class it has, the batch size, and how many images training takes."""

    network: Mapping[str, Any]
    target: str
    per_class: int
    batch_size: int
    images: int

    @property
    def regime(self) -> str:
        many = "image" if self.per_class == 1 else "images"
        return (
            f"{TARGETS[self.target]}, {self.per_class} {many} per class, batches of {self.batch_size}, "
            f"{self.images // self.batch_size} steps"
        )

    @property
    def name(self) -> str:
        return f"{describe(self.network)}, {self.regime}"


@dataclass(frozen=True)
class Adapted:
    """The results of the arms in every cell, and how strong their sources are.

    Attributes:
        cells: in the order of the report.
        chosen: by cell and arm; without the untrained arm, which has no learning rate.
        untrained: one result per replicate, by cell.
        linear: a linear classifier's accuracy on what was pretrained for, by target.
    """

    cells: Sequence[Cell]
    chosen: Mapping[Key, Chosen]
    untrained: Mapping[str, list[dict[str, Any]]]
    linear: Mapping[str, float]

    def results(self, cell: Cell, arm: str) -> list[dict[str, Any]]:
        return self.untrained[cell.name] if arm == "untrained" else self.chosen[cell.name, arm].results

    def accuracy(self, cell: Cell, arm: str) -> list[float]:
        """Return the test accuracy in percent, one value per replicate."""
        return [100 * (1 - result["error"]) for result in self.results(cell, arm)]

    def source_accuracy(self, cell: Cell) -> float:
        """Return the mean accuracy of the pretrained networks on what they were trained for."""
        return mean(float(result["source_accuracy"]) for result in self.untrained[cell.name])


def adapt(experiment: Experiment, cells: Sequence[Cell], arms: Sequence[str], replicates: Sequence[int]) -> Adapted:
    """Pretrain, and adapt every arm in every cell at the learning rate that each replicate chooses."""
    norms = ("batch", "group") if "group" in arms else ("batch",)
    networks = {describe(cell.network): cell.network for cell in cells}
    rates = pretraining_rates(experiment, list(networks.values()), norms)

    def settings(cell: Cell, arm: str) -> dict[str, Any]:
        return {
            "network": dict(cell.network),
            "pretraining_rate": rates[describe(cell.network), "group" if arm == "group" else "batch"],
            "target": cell.target,
            "arm": arm,
            "per_class": cell.per_class,
            "batch_size": cell.batch_size,
            "images": cell.images,
        }

    def trial(arm: Mapping[str, Any], rate: float, replicate: int, report: str) -> Trial:
        own = {"task": experiment.drawn(replicate), "rate": rate, "seed": replicate, "report": report}
        return Trial(f"{__name__}:adapted", {**arm, **own})

    chosen = choose_rates(
        experiment,
        {(cell.name, arm): settings(cell, arm) for cell in cells for arm in arms if arm != "untrained"},
        replicates,
        coarse=COARSE,
        make=lambda arm, exponent, replicate, report: trial(arm, 2.0**exponent, replicate, report),
    )
    untrained = experiment.grid(
        [cell.name for cell in cells],
        replicates,
        lambda name, replicate: trial(
            next(settings(cell, "untrained") for cell in cells if cell.name == name), 0.0, replicate, "test"
        ),
    )
    targets = list(dict.fromkeys(cell.target for cell in cells))
    return Adapted(cells, chosen, untrained, linear_accuracies(experiment, targets))


def room(experiment: Experiment, found: Adapted, arms: Sequence[str], margin: float) -> tuple[list[Cell], Room]:
    """Return the cells that can be judged, and what was seen.

    The pretrained network is strong, and training some arm gains more than the margin over no training, in validation.
    """
    judged, gains, seen = [], [], {}
    for cell in found.cells:
        source = found.source_accuracy(cell)
        least = max(found.linear[cell.target] - STRONG / 100, 2 * chance(experiment.task))
        before = mean(_validation_error(result) for result in found.results(cell, "untrained"))
        after = min(mean(_validation_error(result) for result in found.results(cell, arm)) for arm in arms)
        gains.append(100 * (before - after))
        seen[f"{describe(cell.network)} before {TARGETS[cell.target]}"] = f"{source:.2f} (at least {least:.2f})"
        if source >= least and gains[-1] > margin:
            judged.append(cell)
    control = (
        f"pretrained accuracy: {', '.join(f'{name} {of_name}' for name, of_name in seen.items())}; best arm's gain "
        f"over no training {min(gains):.1f} to {max(gains):.1f} points, above {margin:g} in "
        f"{sum(gain > margin for gain in gains)} of {len(found.cells)} cells"
    )
    return judged, Room(bool(judged), control)


def _validation_error(result: Mapping[str, Any]) -> float:
    return float(result["validation"]["error"])


def effect(experiment: Experiment, found: Adapted, cell: Cell, pair: tuple[str, str], criterion: Criterion) -> Effect:
    """Judge the test accuracy of the first arm minus that of the second in a cell."""
    one, other = pair
    parts = transfer(experiment.task, cell.target)
    precision = precision_of(found.results(cell, one), found.results(cell, other), len(parts.test), len(parts.source))
    values = differences(found.accuracy(cell, one), found.accuracy(cell, other))
    return criterion.effect(f"{cell.name}: {ARMS[one]} minus {ARMS[other]}", values, precision)


def table(found: Adapted, arms: Sequence[str]) -> Table:
    """List every arm's accuracy in every cell."""
    rows = [
        [
            describe(cell.network),
            TARGETS[cell.target],
            cell.per_class,
            cell.batch_size,
            cell.images // cell.batch_size,
            ARMS[arm],
            None if arm == "untrained" else found.chosen[cell.name, arm].rate,
            mean(found.accuracy(cell, arm)),
            sum(result["recalibrated"] for result in found.results(cell, arm)),
        ]
        for cell in found.cells
        for arm in arms
    ]
    columns = [
        "network", "target", "images per class", "batch size", "steps", "arm", "learning rate", "test accuracy, %",
        "replicates that recalibrate",
    ]  # fmt: skip
    return Table("Test accuracy after adaptation, mean over replicates", columns, rows)
