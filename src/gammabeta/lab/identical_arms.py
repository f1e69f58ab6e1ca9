"""A/A: one norm under several names, whose differences are all chance. How often does the study say otherwise?

The names share each replicate's split, and each has its own initialization and order, and chooses its own learning
rate. Contests between two names on some of the replicates are judged as effects are, with a margin of 0; and all names
together are given to the recommendation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gammabeta.lab.choice import choose
from gammabeta.lab.comparison import ERROR, Compared, Comparison, side_by_side
from gammabeta.lab.experiment import TRAIN, Experiment
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.paired import paired_errors
from gammabeta.lab.procedure import choose_rates
from gammabeta.lab.trials.trial import Trial
from gammabeta.lab.tuning import deployed
from gammabeta.lab.verdict import judge

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # by name, one per replicate


@dataclass(frozen=True)
class Rates:
    """How often contests between identical arms are decided.

    Attributes:
        contests: their number.
        decided: supported or contradicted with a margin of 0; 5 % where intervals cover.
        equivalent, inconclusive, wrong: with the margin of the recommendation; wrong is supported or contradicted.
        recommendations: the number of recommendations among all names.
        another: those that name another arm than the usual one.
    """

    contests: int
    decided: int
    equivalent: int
    inconclusive: int
    wrong: int
    recommendations: int
    another: int


def trained(
    experiment: Experiment,
    network: Mapping[str, Any],
    norm: str,
    names: int,
    replicates: Sequence[int],
    steps: int,
) -> dict[str, list[dict[str, Any]]]:
    """Run the whole procedure for one norm under several names.

    Args:
        network, norm: as `gammabeta.lab.images.training.Training` takes them.
        names: how many.
        replicates: numbers of splits.
    """

    def make(settings: Mapping[str, Any], exponent: int, replicate: int, report: str) -> Trial:
        own = {name: value for name, value in settings.items() if name != "name"}
        seed = 100 * replicate + int(settings["name"])
        task = experiment.drawn(replicate)
        return Trial(TRAIN, {"task": task, **own, "rate": 2.0**exponent, "seed": seed, "report": report})

    base = {"network": dict(network), "norm": norm, "batch_size": 32, "steps": steps, **RECIPE}
    arms = {f"arm {index}": {**base, "name": index} for index in range(names)}
    found = choose_rates(experiment, arms, replicates, deployed, coarse=(-6, -4, -2), make=make)
    return {name: of_arm.results for name, of_arm in found.items()}


def contests(experiment: Experiment, results: Results, contests: int, replicates: int, seed: int = 0) -> Rates:
    """Judge random pairs of names on random replicates, and all names together.

    Args:
        contests: how many, of each sort.
        replicates: how many a contest draws, without replacement.
    """
    rng = np.random.default_rng(seed)
    names, available = list(results), len(next(iter(results.values())))
    counts: dict[str, int] = dict.fromkeys(("decided", "equivalent", "inconclusive", "wrong", "another"), 0)
    for _ in range(contests):
        drawn = rng.choice(available, replicates, replace=False)
        of = {name: [results[name][int(place)] for place in drawn] for name in rng.permutation(names)}
        one, other, *_ = of.values()
        values, precision = paired_errors(experiment, one, other, "moving_error")
        exactly = judge(values, (0.0, 0.0), "above", precision)[1]
        verdict = judge(values, ERROR.margin, "above", precision)[1]
        counts["decided"] += exactly in ("supported", "contradicted")
        counts["wrong" if verdict in ("supported", "contradicted") else verdict] += 1
        counts["another"] += _recommended(experiment, of) != next(iter(of))
    return Rates(contests=contests, recommendations=contests, **counts)


def _recommended(experiment: Experiment, results: Results) -> str:
    """Return the arm that is recommended; the first is the usual one."""
    task = experiment.task
    usual, *_ = results.values()
    arms = side_by_side(
        [
            Compared(name, name, 1.0, tuple(100 * float(result["moving_error"]) for result in own), (1.0,), 1)
            for name, own in results.items()
        ],
        ERROR,
        precisions={
            name: (paired_errors(experiment, usual, own, "moving_error")[1],) * 2 for name, own in results.items()
        },
    )
    made = Comparison("images", task.name, "identical arms", 32, 1, 0, ERROR, True, arms)
    return choose(made).arm.norm
