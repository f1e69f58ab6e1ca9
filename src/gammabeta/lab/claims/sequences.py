"""Variable length makes BatchNorm awkward; LayerNorm does better.

Question: In recurrent networks and Transformers over padded sequences, which normalization gives the best accuracy, and
what does padding do to BatchNorm?

Claim: Sequences of variable length make BatchNorm awkward; LayerNorm does better in recurrent networks and
Transformers.

Criterion: Test accuracy with LayerNorm minus that with BatchNorm that includes padding, in percentage points, paired by
seed, is above 2. Each network is a regime. In addition an identity must hold: the training outputs of a network with
masked BatchNorm do not move when padding is appended, to rounding in float64. If it fails, the claim is contradicted.
LayerNorm minus masked BatchNorm is a separate effect, which distinguishes the effect of padding from that of batch
statistics.

Room: With LayerNorm every network's validation accuracy at its best learning rate on the tuning seed is above twice
that of chance.

Method: A GRU and a Transformer encoder. The GRU normalizes the contribution of the input and, inside the recurrence,
that of the state at every step. Training uses Adam on batches of 32. The learning rate is tuned for each arm on a
separate seed and falls to 0 along half a cosine. (The schedule was added after a look at 8 seeds, which the noise of
the last batches left inconclusive.) Evaluation uses exact statistics of the training sequences, which inside the
recurrence are each step's own. One moving average over all steps fits none of them and would decide the outcome. (It
did: the GRU lost 60 points by it, which is why this was changed after a look.) The accuracy with moving averages, which
a user would see, is a separate effect. Movement compares one batch with the same batch after as many padded steps as it
is long are appended, in a freshly initialized network in training mode; it is the largest change of a score.

Settings: width 32, Transformer of 2 layers. Quick: GRU and pre-norm Transformer, 120 steps, 3 seeds; arms without
normalization, padded and masked BatchNorm, LayerNorm. Full: also post-norm, 400 steps, 12 seeds.

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
from gammabeta.lab.interval import Precision
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.sequences.networks import ARMS, build_sequence_network, networks_of
from gammabeta.lab.sequences.training import BATCH, batch_of, seeds_of, steps_of, trained
from gammabeta.lab.sources import load_sequences
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "sequences"

JUDGED = ("none", "padded", "masked", "layer")
MARGIN = (-2.0, 2.0)
ROUNDING = 1e-9
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="above")
Cell = tuple[str, str]  # network, arm


@versioned(1)
def moved(*, task: Mapping[str, Any], network: str, arm: str, seed: int) -> dict[str, Any]:
    """Append as much padding as a batch is long; return the largest change of a score in each mode, in float64."""
    data = load_sequences(task)
    longest = data.train.x_ntf.shape[1]
    found = {}
    for mode in ("training", "evaluation"):
        scores = []
        for extra in (0, 1):
            model = build_sequence_network(network, data.features, data.classes, arm, 2 * longest, seed).double()
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
        rates: the exponent of the learning rate.
        accuracy, moving: test accuracy in percent with exact statistics and with moving averages, one value per seed.
        reached: validation accuracy on the tuning seed, as a fraction.
        moves: the largest change of a score in training and in evaluation.
    """

    networks: Sequence[str]
    rates: Mapping[Cell, int]
    accuracy: Mapping[Cell, list[float]]
    moving: Mapping[Cell, list[float]]
    reached: Mapping[Cell, float]
    moves: Mapping[Cell, Mapping[str, float]]

    @property
    def wrong(self) -> int:
        """The number of networks whose masked BatchNorm moves with padding."""
        return sum(self.moves[network, "masked"]["training"] > ROUNDING for network in self.networks)


def measure(experiment: Experiment) -> Outcome:
    """Compare LayerNorm with padded and masked BatchNorm, and measure what padding moves."""
    seeds = seeds_of(experiment)
    found = _measured(experiment, seeds[0])
    precision = Precision(samples=len(load_sequences(dict(experiment.sources["sequences"])).test))

    def above(other: str, accuracy: Mapping[Cell, list[float]], how: str = "") -> list[Effect]:
        return [
            CRITERION.effect(
                f"{network}: LayerNorm minus {ARMS[other]}{how}",
                differences(accuracy[network, "layer"], accuracy[network, other]),
                precision,
            )
            for network in found.networks
        ]

    padded, masked = above("padded", found.accuracy), above("masked", found.accuracy)
    by_moving = above("padded", found.moving, ", with moving averages")
    regimes = {network: effect.verdict for network, effect in zip(found.networks, padded, strict=True)}
    exact = Effect.exactly(
        "networks whose masked BatchNorm moves with padding", found.wrong, len(found.networks), "networks"
    )
    compared = [*padded, *masked, *by_moving]
    room = _room(experiment, found)
    verdict: Verdict = "contradicted" if found.wrong else over_regimes(list(regimes.values()))
    return Outcome(
        verdict=verdict if room.holds else "no room here",
        sentence=_sentence(padded, by_moving, found),
        effects=[*compared, exact],
        room=room,
        pictures=[
            bars(
                "Test accuracy with LayerNorm minus that with BatchNorm",
                "Above 0: LayerNorm is better. 95 % interval over seeds.",
                "network and arm",
                Axis("difference", "percentage points"),
                compared,
            ),
            _moves(found),
        ],
        tables=[_table(found)],
        settings=f"{len(seeds)} seeds, {steps_of(experiment)} steps",
        regimes=regimes,
        trials=experiment.trials,
    )


def _measured(experiment: Experiment, seed: int) -> Measured:
    """Train every cell, and append padding in freshly initialized networks."""
    networks = networks_of(experiment)
    rates, found, tuned = trained(experiment, JUDGED)
    source = dict(experiment.sources["sequences"])
    cells = [(network, arm) for network in networks for arm in JUDGED]
    moves = experiment.grid(
        cells,
        [seed],
        lambda cell, seed: Trial(
            f"{__name__}:moved", {"task": source, "network": cell[0], "arm": cell[1], "seed": seed}
        ),
    )
    return Measured(
        networks,
        rates,
        {cell: [100 * (1 - result["error"]) for result in found[cell]] for cell in cells},
        {cell: [100 * (1 - result["moving_error"]) for result in found[cell]] for cell in cells},
        {cell: 1 - result["error"] for cell, result in tuned.items()},
        {cell: result for cell, (result,) in moves.items()},
    )


def _room(experiment: Experiment, found: Measured) -> Room:
    by_chance = chance(load_sequences(dict(experiment.sources["sequences"])))
    reached = {network: found.reached[network, "layer"] for network in found.networks}
    return Room(
        all(value > 2 * by_chance for value in reached.values()),
        "validation accuracy with LayerNorm: "
        + ", ".join(f"{network} {value:.2f}" for network, value in reached.items())
        + f"; twice chance is {2 * by_chance:.2f}",
    )


def _sentence(by_network: Sequence[Effect], by_moving: Sequence[Effect], found: Measured) -> str:
    accuracy = {cell: mean(values) for cell, values in found.accuracy.items()}
    each = "; ".join(
        f"{network} {exact.value:+.1f} points [{exact.low:.1f}, {exact.high:.1f}] ({exact.verdict}; with moving "
        f"averages {moving.value:+.1f}), LayerNorm {accuracy[network, 'layer']:.1f}, padded BatchNorm "
        f"{accuracy[network, 'padded']:.1f}, masked {accuracy[network, 'masked']:.1f}, "
        f"none {accuracy[network, 'none']:.1f} %"
        for network, exact, moving in zip(found.networks, by_network, by_moving, strict=True)
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
            for arm in JUDGED
        ],
    )


def _table(found: Measured) -> Table:
    return Table(
        "Test accuracy, mean over seeds, and movement",
        [
            "network",
            "arm",
            "learning rate",
            "accuracy, %",
            "with moving averages, %",
            "moves in training",
            "moves in evaluation",
        ],
        [
            [
                network,
                ARMS[arm],
                2.0 ** found.rates[network, arm],
                mean(accuracy),
                mean(found.moving[network, arm]),
                found.moves[network, arm]["training"],
                found.moves[network, arm]["evaluation"],
            ]
            for (network, arm), accuracy in found.accuracy.items()
        ],
    )
