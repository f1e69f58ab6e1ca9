"""Variable length makes BatchNorm awkward; LayerNorm does better.

Question: In recurrent networks and Transformers over padded sequences, which normalization gives the best accuracy, and
what does padding do to BatchNorm?

Claim: Sequences of variable length make BatchNorm awkward; LayerNorm does better in recurrent networks and
Transformers.

Criterion: Test accuracy with LayerNorm minus that with BatchNorm that includes padding, in percentage points, as
deployed (with moving averages), paired by replicate, is above 2. Each network is a regime. In addition an identity must
hold: the training outputs of a network with masked BatchNorm do not move when padding is appended, to rounding in
float64. If it fails, the claim is contradicted. LayerNorm minus masked BatchNorm is a separate effect, which
distinguishes the effect of padding from that of batch statistics. So is LayerNorm minus padded BatchNorm with exact
statistics, which inside a recurrence are each step's own.

Room: A network is judged if with LayerNorm the mean of its validation accuracies, each at the learning rate that the
replicate chose, is above twice that of chance.

Method: A GRU, an LSTM and Transformer encoders. The recurrent networks normalize the contribution of the input and,
inside the recurrence, that of the state at every step; the LSTM also normalizes its cell. Training uses Adam on batches
of 32; the learning rate falls to 0 along half a cosine. Every replicate draws its own split and chooses each arm's
learning rate by its validation accuracy as deployed. One moving average over all steps of a recurrence fits none of
them, which is part of what a user gets; exact statistics are those of 512 training sequences, step by step (Cooijmans
et al. 2017). GroupNorm has the groups of one step's channels. Movement compares one batch with the same batch after as
many padded steps as it is long are appended, in a freshly initialized network in training mode; it is the largest
change of a score.

Settings: width 32, Transformer of 2 layers; the user's model in their place. Quick: GRU and pre-norm Transformer, 100
steps (coarse search: 40), 3 replicates; padded and masked BatchNorm, LayerNorm. Full: also LSTM and post-norm, no
normalization, RMSNorm and GroupNorm, 400 steps, 12 replicates.

Sources: Ba et al. 2016 (arXiv 1607.06450); Cooijmans et al. 2017 (1603.09025); Laurent et al. 2016 (1510.01378); Shen
et al. 2020, PowerNorm (2003.07845)

Known: In a pilot run on rows of digits with the Transformer: LayerNorm 91.6, masked BatchNorm 94.1. Inside the
recurrence: LayerNorm 74, BatchNorm 49 to 59 (with moving averages). Padded BatchNorm moves 0.4 to 1.7 in training, and
nothing moves in evaluation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch.nn import functional

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.training import chance
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.procedure import Chosen
from gammabeta.lab.sequences.networks import ARMS, networks_of
from gammabeta.lab.sequences.training import (
    BATCH,
    batch_of,
    build_network,
    precision,
    seeds_of,
    settings_of,
    steps_of,
    trained,
)
from gammabeta.lab.sources import load_sequences
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "sequences"

JUDGED = ("padded", "masked", "layer")
BESIDE = ("none", "rms", "group")
MARGIN = (-2.0, 2.0)
ROUNDING = 1e-9
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="above")
Cell = tuple[str, str]  # network, arm


@versioned(2)
def moved(*, task: Mapping[str, Any], network: str | Mapping[str, Any], arm: str, seed: int) -> dict[str, Any]:
    """Append as much padding as a batch is long; return the largest change of a score in each mode, in float64."""
    data = load_sequences(task)
    found = {}
    for mode in ("training", "evaluation"):
        scores = []
        for extra in (0, 1):
            model = build_network(network, data, arm, seed).double()
            generator = torch.Generator().manual_seed(seed)
            x, mask, _ = batch_of(data.train, torch.randint(len(data.train), (BATCH,), generator=generator))
            x = functional.pad(x.double(), (0, 0, 0, extra * x.shape[1]))
            mask = functional.pad(mask, (0, extra * mask.shape[1]))
            with torch.no_grad():
                scores.append(model.train(mode == "training")(x, mask))
        found[mode] = float((scores[0] - scores[1]).abs().max())
    return found


@dataclass(frozen=True)
class Measured:
    """What was measured of every cell.

    Attributes:
        arms: those that were trained.
        chosen: the results at each replicate's own learning rate.
        moves: the largest change of a score in training and in evaluation.
    """

    networks: Sequence[str]
    arms: Sequence[str]
    chosen: Mapping[Cell, Chosen]
    moves: Mapping[Cell, Mapping[str, float]]

    def accuracy(self, network: str, arm: str, key: str = "moving_error") -> list[float]:
        """Return test accuracies in percent, one per replicate; ``"error"`` is that with exact statistics."""
        return [100 * (1 - result[key]) for result in self.chosen[network, arm].results]

    def reached(self, network: str) -> float:
        """Return the mean validation accuracy with LayerNorm."""
        return mean(1 - float(result["validation"]["moving_error"]) for result in self.chosen[network, "layer"].results)

    @property
    def wrong(self) -> int:
        """The number of networks whose masked BatchNorm moves with padding."""
        return sum(self.moves[network, "masked"]["training"] > ROUNDING for network in self.networks)


def measure(experiment: Experiment) -> Outcome:
    """Compare LayerNorm with padded and masked BatchNorm, and measure what padding moves."""
    seeds = seeds_of(experiment)
    found = _measured(experiment, seeds[0])
    data = load_sequences(dict(experiment.sources["sequences"]))

    def above(other: str, key: str = "moving_error", how: str = "") -> list[Effect]:
        wrong = key.replace("error", "wrong")
        return [
            CRITERION.effect(
                f"{network}: LayerNorm minus {ARMS[other]}{how}",
                differences(found.accuracy(network, "layer", key), found.accuracy(network, other, key)),
                precision(data, found.chosen[network, "layer"], found.chosen[network, other], (wrong, wrong)),
            )
            for network in found.networks
        ]

    padded, masked = above("padded"), above("masked")
    by_exact = above("padded", "error", ", with exact statistics")
    limit = 2 * chance(data)
    regimes: dict[str, Verdict] = {
        network: effect.verdict if found.reached(network) > limit else "no room here"
        for network, effect in zip(found.networks, padded, strict=True)
    }
    exact = Effect.exactly(
        "networks whose masked BatchNorm moves with padding", found.wrong, len(found.networks), "networks"
    )
    compared = [*padded, *masked, *by_exact]
    room = _room(found, limit)
    verdict: Verdict = "contradicted" if found.wrong else over_regimes(list(regimes.values()))
    return Outcome(
        verdict=verdict if room.holds else "no room here",
        sentence=_sentence(padded, by_exact, found),
        effects=[*compared, exact],
        room=room,
        pictures=[
            bars(
                "Test accuracy with LayerNorm minus that with BatchNorm",
                "Above 0: LayerNorm is better. 95 % interval over replicates.",
                "network and arm",
                Axis("difference", "percentage points"),
                compared,
            ),
            _moves(found),
        ],
        tables=[_table(found)],
        settings=f"{len(seeds)} replicates, {steps_of(experiment)} steps",
        regimes=regimes,
        trials=experiment.trials,
    )


def _measured(experiment: Experiment, seed: int) -> Measured:
    """Train every cell, and append padding in freshly initialized networks."""
    networks, arms = networks_of(experiment), JUDGED if experiment.quick else (*JUDGED, *BESIDE)
    chosen = trained(experiment, arms)
    source = dict(experiment.sources["sequences"])
    moves = experiment.grid(
        [(network, arm) for network in networks for arm in arms],
        [seed],
        lambda cell, seed: Trial(
            f"{__name__}:moved",
            {
                "task": source,
                "network": settings_of(experiment, cell[0], "layer")["network"],
                "arm": cell[1],
                "seed": seed,
            },
        ),
    )
    return Measured(networks, arms, chosen, {cell: result for cell, (result,) in moves.items()})


def _room(found: Measured, limit: float) -> Room:
    reached = {network: found.reached(network) for network in found.networks}
    return Room(
        any(value > limit for value in reached.values()),
        "validation accuracy with LayerNorm: "
        + ", ".join(f"{network} {value:.2f}" for network, value in reached.items())
        + f"; twice chance is {limit:.2f}",
    )


def _sentence(by_network: Sequence[Effect], by_exact: Sequence[Effect], found: Measured) -> str:
    each = "; ".join(
        f"{network} {moving.value:+.1f} points [{moving.low:.1f}, {moving.high:.1f}] ({moving.verdict}; with exact "
        f"statistics {exact.value:+.1f}), "
        + ", ".join(f"{ARMS[arm]} {mean(found.accuracy(network, arm)):.1f}" for arm in found.arms)
        + " %"
        for network, moving, exact in zip(found.networks, by_network, by_exact, strict=True)
    )
    most = max(found.moves[network, "padded"]["training"] for network in found.networks)
    return (
        f"LayerNorm's accuracy above that of BatchNorm that includes padding: {each}; "
        f"appended padding moves padded BatchNorm's training outputs by up to {most:.2f}, masked "
        f"BatchNorm's {f'in {found.wrong} networks' if found.wrong else 'not at all'}"
    )


def _moves(found: Measured) -> Picture:
    return Picture(
        "Change of a score when padding is appended",
        "Largest change over a batch, freshly initialized, in training; in evaluation nothing moves.",
        "bar",
        Axis("network"),
        Axis("change of a score"),
        [
            Series(ARMS[arm], found.networks, [found.moves[network, arm]["training"] for network in found.networks])
            for arm in found.arms
        ],
    )


def _table(found: Measured) -> Table:
    return Table(
        "Test accuracy, mean over replicates, and movement",
        [
            "network",
            "arm",
            "learning rate",
            "accuracy, %",
            "with exact statistics, %",
            "moves in training",
            "moves in evaluation",
        ],
        [
            [
                network,
                ARMS[arm],
                found.chosen[network, arm].rate,
                mean(found.accuracy(network, arm)),
                mean(found.accuracy(network, arm, "error")),
                found.moves[network, arm]["training"],
                found.moves[network, arm]["evaluation"],
            ]
            for network, arm in found.chosen
        ],
    )
