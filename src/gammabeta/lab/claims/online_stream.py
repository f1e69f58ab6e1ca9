"""Online learning in small batches hurts BatchNorm.

Question: When every image comes once, in small batches, and must be answered before it is learned from, does BatchNorm
make more errors than a norm that looks at one image?

Claim: BatchNorm can be unsuited to online learning, where batches are small and the data changes.

Criterion: BatchNorm's error minus GroupNorm's, in percentage points, paired by replicate, is above 2. Each network,
batch size and order of the stream is a regime.

Room: GroupNorm learns online: its validation error is below half of that of chance in the regime.

Method: A stream of the training images, each once, and after it one of the test images. Every batch is answered first,
in evaluation mode, with running statistics only: a stream has no shuffled population to recalibrate on. Then one step
is taken on it. The error is that of the answers on the test images: the network goes on learning, and has seen none of
them before. SGD with momentum 0.9 and a constant learning rate, since a stream has no end that a schedule could know.
In the shuffled stream classes come at random; in the stream of runs up to 16 images of one class come in a row. Every
replicate draws its own split, and chooses its learning rate on a stream of its validation images. LayerNorm and batch
renormalization are reported beside it, and the error on the training images, before it is settled.

Settings: MLP of 2 layers, batches of 2 and 8; the small ResNet (or the user's model), batches of 1 and 8. Quick: the
MLP (or the user's model), batch and group, runs only with batches of 8, 4 replicates. Full: both networks, all norms
and orders, 16 replicates.

Sources: Ioffe 2017, Batch Renormalization, section 4.3 (arXiv 1702.03275); Wu & Johnson 2021, Rethinking "Batch",
section 6 (2105.07576); Pham et al. 2022, Continual Normalization (2203.16102)

Known: Ioffe 2017: on batches whose classes are not drawn at random BatchNorm trains, and fails in evaluation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images import online_together
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.training import chance
from gammabeta.lab.images.user_network import impossible_arms
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Room, Table, bars
from gammabeta.lab.paired import paired_errors
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

MARGIN = (-2.0, 2.0)
COARSE = (-8, -6)
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="above")
Found = Mapping[tuple[str, str], Chosen]  # by regime and norm


@versioned(1, together="gammabeta.lab.images.online_together")
def streamed(**settings: Any) -> dict[str, Any]:
    """Learn online from the training images, then from those of the reported split.

    Args:
        settings: task, network, norm, batch_size, order (as :func:`gammabeta.lab.images.online_together.stream_order`
            takes it), rate, seed, report.

    Returns:
        ``error``: of the answers before each step, on the reported split; 1 where a loss was not finite.
        ``early_error``: the same on the training images. ``validation``: the error on the validation split, where the
        test split is reported. ``loss`` is None.
    """
    return online_together.streamed([settings])[0]


@dataclass(frozen=True)
class Regime:
    """A network, the batch size and the order of the stream."""

    network: Mapping[str, Any]
    batch_size: int
    order: str

    @property
    def name(self) -> str:
        return f"{describe(self.network)}, batches of {self.batch_size}, {self.order}"


def regimes(experiment: Experiment) -> list[Regime]:
    """Return the streams to measure."""
    mlp, conv = experiment.mlp(2), experiment.convolutional
    if experiment.quick:
        network, small = (conv, 1) if experiment.user else (mlp, 2)
        return [Regime(network, small, "shuffled"), Regime(network, 8, "shuffled"), Regime(network, 8, "runs")]
    return [
        Regime(network, size, order)
        for network, sizes in ((mlp, (2, 8)), (conv, (1, 8)))
        for size in sizes
        for order in ("shuffled", "runs")
    ]


def measure(experiment: Experiment) -> Outcome:
    """Compare the errors of networks that learn online."""
    seeds, every = experiment.seeds(4, 16), regimes(experiment)
    norms = ("batch", "group") if experiment.quick else ("batch", "group", "layer", "renorm", "none")
    found = _runs(experiment, every, norms, seeds)
    allowed = 0.5 * (1 - chance(experiment.task))
    learned = {regime.name: _validation_error(found[regime.name, "group"]) for regime in every}
    judged = [regime.name for regime in every if learned[regime.name] < allowed]
    each = {name: _effect(experiment, found, name, "batch", "group") for name in judged}
    verdicts: dict[str, Verdict] = {
        regime.name: each[regime.name].verdict if regime.name in each else "no room here" for regime in every
    }
    others = [_effect(experiment, found, name, "renorm", "group") for name in judged if (name, "renorm") in found]
    return Outcome(
        verdict=over_regimes(list(verdicts.values())),
        sentence=_sentence(each, found),
        effects=[*each.values(), *others],
        room=Room(
            bool(judged),
            f"GroupNorm's validation error online below {allowed:.2f}: "
            + ", ".join(f"{name} {error:.3f}" for name, error in learned.items()),
        ),
        pictures=[
            bars(
                "BatchNorm's error online minus GroupNorm's",
                "Above 0: BatchNorm makes more errors. 95 % interval over replicates.",
                "regime",
                Axis("difference of errors", "percentage points"),
                list(each.values()),
            )
        ],
        tables=[_table(found)],
        settings=f"{len(seeds)} replicates, one pass",
        regimes=verdicts,
        trials=experiment.trials,
    )


def _runs(experiment: Experiment, every: Sequence[Regime], norms: Sequence[str], seeds: Sequence[int]) -> Found:
    def trial(arm: Mapping[str, Any], exponent: int, replicate: int, report: str) -> Trial:
        own = {"task": experiment.drawn(replicate), "rate": 2.0**exponent, "seed": replicate, "report": report}
        return Trial(f"{__name__}:streamed", {**arm, **own})

    arms = {
        (regime.name, norm): {
            "network": dict(regime.network), "norm": norm, "batch_size": regime.batch_size, "order": regime.order,
        }
        for regime in every
        for norm in norms
        if norm not in impossible_arms(regime.network, experiment.task)
    }  # fmt: skip
    return choose_rates(experiment, arms, seeds, lambda result: float(result["error"]), COARSE, trial)


def _validation_error(chosen: Chosen) -> float:
    return mean(float(result["validation"]["error"]) for result in chosen.results)


def _effect(experiment: Experiment, found: Found, name: str, one: str, other: str) -> Effect:
    values, precision = paired_errors(experiment, found[name, one].results, found[name, other].results)
    return CRITERION.effect(f"{name}: {NORMS[one]} minus {NORMS[other]}", values, precision)


def _percent(found: Found, name: str, norm: str, key: str = "error") -> float:
    return 100 * mean(float(result[key]) for result in found[name, norm].results)


def _sentence(each: Mapping[str, Effect], found: Found) -> str:
    if not each:
        return "no regime has room: GroupNorm does not learn online"
    return "BatchNorm's error online minus GroupNorm's, in points: " + "; ".join(
        f"{name} {e.value:+.1f} [{e.low:.1f}, {e.high:.1f}] ({e.verdict}; {_percent(found, name, 'batch'):.1f} against "
        f"{_percent(found, name, 'group'):.1f} %)"
        for name, e in each.items()
    )


def _table(found: Found) -> Table:
    return Table(
        "Error of the answers before each step, %, mean over replicates",
        ["regime", "norm", "learning rate", "on the test images", "on the training images"],
        [
            [name, NORMS[norm], chosen.rate, _percent(found, name, norm), _percent(found, name, norm, "early_error")]
            for (name, norm), chosen in found.items()
        ],
    )
