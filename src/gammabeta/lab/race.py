"""The race to a target accuracy: networks, arms and their best learning rates.

The claims on faster convergence and on higher learning rates share it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import describe
from gammabeta.lab.outcome import Room
from gammabeta.lab.trials.trial import Trial
from gammabeta.lab.tuning import tune

BATCH_SIZE, LIMIT, EVERY = 32, 300, 5
ARMS = ("none", "batch")
# The target lies this part of the way from chance to a linear classifier's accuracy on the same data.
PART = 0.9


@dataclass(frozen=True)
class Race:
    """One network with and without BatchNorm; ``best`` is the exponent of 2 of each one's best learning rate."""

    network: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    best: Mapping[str, int]
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
    """Return MLPs of depth 4 and 12 with relu, with matched and with torch's initialization.

    A full study, and one with a user's model, adds a convolutional network.
    """
    chosen = [experiment.mlp(4), experiment.mlp(12), experiment.mlp(12, init="default")]
    if not experiment.quick:
        chosen.append(experiment.mlp(4, init="default"))
    if experiment.user or not experiment.quick:
        chosen.append(experiment.convolutional)
    return chosen


def target(experiment: Experiment) -> float:
    """Return the validation accuracy to reach; a linear classifier fixes it before any network is trained."""
    reference = experiment.run([Trial("gammabeta.lab.images.training:linear", {"task": dict(experiment.source)})])[0]
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


def races(experiment: Experiment) -> list[Race]:
    """Tune every network's arms, and decide by the unnormalized arm's tuning runs whether there is room.

    There is room where the unnormalized network trains at its best learning rate, but not at once. It must get above
    twice the accuracy of chance, and need more than two looks at the validation set to reach the target.
    """
    goal = target(experiment)
    chosen = networks(experiment)
    arms = {
        (index, norm): {
            "network": dict(network),
            "norm": norm,
            "batch_size": BATCH_SIZE,
            "steps": LIMIT,
            "target": goal,
            "every": EVERY,
        }
        for index, network in enumerate(chosen)
        for norm in ARMS
    }
    best = dict(zip(arms, tune(experiment, list(arms.values()), steps_or_more), strict=True))
    found = []
    chance = experiment.run([Trial("gammabeta.lab.images.training:linear", {"task": dict(experiment.source)})])[0][
        "chance"
    ]
    for index, network in enumerate(chosen):
        pair = {norm: arms[index, norm] for norm in ARMS}
        rates = {norm: best[index, norm] for norm in ARMS}
        control = experiment.run(
            [experiment.train(**pair["none"], rate=2.0 ** rates["none"], seed=experiment.tuning_seed)]
        )[0]
        accuracy, steps = best_accuracy(control), control["steps"]
        seen = f"accuracy {accuracy:.2f}" + (f", target after {steps:.0f} steps" if steps else ", target not reached")
        trains = accuracy > 2 * chance
        holds = trains and (steps is None or steps > 2 * EVERY)
        found.append(
            Race(network, pair, rates, Room(holds, f"{describe(network)} without normalization: {seen}"), trains)
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
