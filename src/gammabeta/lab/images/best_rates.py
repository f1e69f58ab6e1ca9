"""Networks with and without BatchNorm at the learning rates that replicates choose for them.

The claims on covariate shift and on the loss landscape share them.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import describe
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.tuning import error_then_loss

BATCH = 32
ARMS = ("none", "batch")
# Exponents of 2 with which the search of learning rates begins.
START = (-3, -1)


def networks(experiment: Experiment) -> list[Mapping[str, Any]]:
    depths = (4,) if experiment.quick else (4, 8)
    chosen = [experiment.mlp(depth, activation=activation) for depth in depths for activation in ("relu", "tanh")]
    if experiment.user or not experiment.quick:
        chosen.append(experiment.convolutional)
    return chosen


def best_rates(
    experiment: Experiment, chosen: Sequence[Mapping[str, Any]], steps: int, replicates: Sequence[int]
) -> dict[tuple[str, str], Chosen]:
    """Let every replicate choose the learning rate of each network and arm by its validation error after ``steps``."""
    arms = {
        (describe(network), norm): {"network": dict(network), "norm": norm, "batch_size": BATCH, "steps": steps}
        for network in chosen
        for norm in ARMS
    }
    return choose_rates(
        experiment,
        arms,
        replicates,
        error_then_loss,
        START,
        # These runs only choose, so that no test split is looked at.
        lambda settings, exponent, replicate, _: experiment.train(**settings, rate=2.0**exponent, seed=replicate),
    )


def accuracy_without(rates: Mapping[tuple[str, str], Chosen], network: str) -> float:
    """Return a network's validation accuracy without normalization at the chosen rates, the median over replicates."""
    return 1.0 - median(float(result["error"]) for result in rates[network, "none"].results)
