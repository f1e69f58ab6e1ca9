"""Networks with and without BatchNorm at their best learning rates.

The claims on covariate shift and on the loss landscape share them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import describe
from gammabeta.lab.tuning import error_then_loss, tune

BATCH = 32
ARMS = ("none", "batch")


def networks(experiment: Experiment) -> list[Mapping[str, Any]]:
    depths = (4,) if experiment.quick else (4, 8)
    chosen = [experiment.mlp(depth, activation=activation) for depth in depths for activation in ("relu", "tanh")]
    if experiment.user or not experiment.quick:
        chosen.append(experiment.convolutional)
    return chosen


def arms(chosen: Sequence[Mapping[str, Any]], steps: int) -> list[dict[str, Any]]:
    return [
        {"network": dict(network), "norm": norm, "batch_size": BATCH, "steps": steps}
        for network in chosen
        for norm in ARMS
    ]


def best_rates(experiment: Experiment, chosen: Sequence[Mapping[str, Any]], steps: int) -> dict[tuple[str, str], int]:
    """Return the exponent of 2 of the best learning rate by network and arm, by validation error after ``steps``."""
    keys = [(describe(network), norm) for network in chosen for norm in ARMS]
    return dict(zip(keys, tune(experiment, arms(chosen, steps), error_then_loss), strict=True))


def accuracy_without(
    experiment: Experiment, chosen: Sequence[Mapping[str, Any]], rates: Mapping[tuple[str, str], int], steps: int
) -> list[float]:
    """Return each unnormalized network's validation accuracy at its best learning rate, on the tuning seed."""
    trials = [
        experiment.train(**arm, rate=2.0 ** rates[describe(arm["network"]), "none"], seed=experiment.tuning_seed)
        for arm in arms(chosen, steps)
        if arm["norm"] == "none"
    ]
    return [1.0 - float(result["error"]) for result in experiment.run(trials)]
