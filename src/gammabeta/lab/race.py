"""The race to a target accuracy: networks, arms and the learning rates that replicates choose for them.

The claims on faster convergence and on higher learning rates share it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import describe
from gammabeta.lab.outcome import Room
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.trials.trial import Trial

BATCH_SIZE, LIMIT, EVERY = 32, 300, 5
ARMS = ("none", "batch")
# The target lies this part of the way from chance to a linear classifier's accuracy on the same data.
PART = 0.9
# Exponents of 2 with which the search of learning rates begins.
START = (-3, -1)


@dataclass(frozen=True)
class Race:
    """One network with and without BatchNorm, each at the learning rates that the replicates chose.

    Attributes:
        network: as settings describe it.
        settings: of each arm's trials, without ``rate`` and ``seed``.
        chosen: each arm's rates and runs, one per replicate.
        room: whether the network is judged, and what was seen.
        trains: whether it learns without normalization.
    """

    network: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    chosen: Mapping[str, Chosen]
    room: Room
    trains: bool

    @property
    def name(self) -> str:
        return describe(self.network)

    @property
    def matched(self) -> bool:
        """Whether the initialization suits the activation; a user's model brings its own."""
        return bool(self.network.get("init", "matched") == "matched")


def networks(experiment: Experiment) -> list[Mapping[str, Any]]:
    """Return MLPs of depth 4 and, quick, 8 or, in full, 12, with relu and matched initialization.

    A full study adds torch's initialization; it and one with a user's model add a convolutional network.
    """
    chosen = [experiment.mlp(4), experiment.mlp(8 if experiment.quick else 12)]
    if not experiment.quick:
        chosen += [experiment.mlp(12, init="default"), experiment.mlp(4, init="default")]
    if experiment.user or not experiment.quick:
        chosen.append(experiment.convolutional)
    return chosen


def linear(experiment: Experiment) -> dict[str, Any]:
    """Return the ``accuracy`` of a linear classifier on the validation images, and that of ``chance``."""
    return experiment.run([Trial("gammabeta.lab.images.training:linear", {"task": dict(experiment.source)})])[0]


def target(experiment: Experiment) -> float:
    """Return the validation accuracy to reach; a linear classifier fixes it before any network is trained."""
    reference = linear(experiment)
    chance: float = reference["chance"]
    accuracy: float = reference["accuracy"]
    return round(chance + PART * (accuracy - chance), 4)


def steps_or_more(result: Mapping[str, Any]) -> float:
    """Score a run by its steps to the target; a run that did not reach it scores higher the less accurate it was."""
    if result["steps"] is not None:
        return float(result["steps"])
    return LIMIT * (2.0 - best_accuracy(result))


def best_accuracy(result: Mapping[str, Any]) -> float:
    return float(max(accuracy for _, accuracy in result["accuracy"]))


def races(experiment: Experiment, replicates: Sequence[int]) -> list[Race]:
    """Let every replicate choose each arm's learning rate by its steps to the target, and decide where there is room.

    There is room where, in the median of the replicates, the unnormalized network trains at the rates chosen for it,
    but not at once. It must get above twice the accuracy of chance, and need more than two looks at the validation set
    to reach the target.
    """
    goal, chance = target(experiment), linear(experiment)["chance"]
    every = networks(experiment)
    arms = {
        (index, norm): {
            "network": dict(network),
            "norm": norm,
            "batch_size": BATCH_SIZE,
            "steps": LIMIT,
            "target": goal,
            "every": EVERY,
        }
        for index, network in enumerate(every)
        for norm in ARMS
    }
    chosen = choose_rates(
        experiment,
        arms,
        replicates,
        steps_or_more,
        START,
        # The target is one of validation accuracy, so that no test split is looked at.
        lambda settings, exponent, replicate, _: experiment.train(**settings, rate=2.0**exponent, seed=replicate),
    )
    found = []
    for index, network in enumerate(every):
        controls = chosen[index, "none"].results
        accuracy = median(map(best_accuracy, controls))
        steps = median(math.inf if run["steps"] is None else run["steps"] for run in controls)
        reached = math.isfinite(steps)
        seen = f"accuracy {accuracy:.2f}" + (f", target after {steps:.0f} steps" if reached else ", target not reached")
        trains = accuracy > 2 * chance
        found.append(
            Race(
                network,
                {norm: arms[index, norm] for norm in ARMS},
                {norm: chosen[index, norm] for norm in ARMS},
                Room(trains and steps > 2 * EVERY, f"{describe(network)} without normalization: {seen}"),
                trains,
            )
        )
    return found


def without_room(every: Sequence[Race]) -> str:
    """Return the end of a sentence that names the networks without room; empty where all have room."""
    parts = [
        f"{race.name} ({'at the target at once' if race.trains else 'untrained'} without normalization)"
        for race in every
        if not race.room.holds
    ]
    return f"; no room in {', '.join(parts)}" if parts else ""
