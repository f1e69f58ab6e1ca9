"""Variable length makes BatchNorm awkward; LayerNorm does better.

Question: In recurrent networks and Transformers over padded sequences, which normalization gives the best accuracy, and
what does padding do to BatchNorm?

Claim: Sequences of variable length make BatchNorm awkward; LayerNorm does better in recurrent networks and
Transformers.

Criterion: Test accuracy with LayerNorm minus that with BatchNorm that includes padding, in percentage points, paired by
seed, is above 2, by the median over networks of each seed's difference. In addition an identity must hold: the training
outputs of a network with masked BatchNorm do not move when padding is appended, to rounding in float64. If it fails,
the claim is contradicted. LayerNorm minus masked BatchNorm is a separate effect, which distinguishes the effect of
padding from that of batch statistics.

Room: With LayerNorm every network's validation accuracy at its best learning rate on the tuning seed is above twice
that of chance.

Method: A GRU and a Transformer encoder. The GRU normalizes the contribution of the input and, inside the recurrence,
that of the state at every step. Training uses Adam on batches of 32. The learning rate is tuned for each arm on a
separate seed and falls to 0 along half a cosine. (The schedule was added after a look at 8 seeds, which the noise of
the last batches left inconclusive.) Evaluation uses exact statistics of the training sequences, which inside the
recurrence are each step's own. One moving average over all steps fits none of them and would decide the outcome. (It
did: the GRU lost 60 points by it, which is why this was changed after a look.) The accuracy with moving averages, which
a user would see, is a separate effect. Movement compares one batch with the same batch after doubling its padding, in a
freshly initialized network in training mode; it is the largest change of a score.

Settings: width 32, Transformer of 2 layers. Quick: GRU and pre-norm Transformer, 120 steps, 3 seeds; arms without
normalization, padded and masked BatchNorm, LayerNorm. Full: also post-norm, 400 steps, 12 seeds.

Sources: Ba et al. 2016 (arXiv 1607.06450); Cooijmans et al. 2017 (1603.09025); Laurent et al. 2016 (1510.01378); Shen
et al. 2020, PowerNorm (2003.07845)

Known: In a pilot run on rows of digits with the Transformer: LayerNorm 91.6, masked BatchNorm 94.1. Inside the
recurrence: LayerNorm 74, BatchNorm 49 to 59 (with moving averages). Padded BatchNorm moves 0.4 to 1.7 in training, and
nothing moves in evaluation.
"""

from collections.abc import Mapping
from statistics import mean, median
from typing import Any

import torch
from torch.nn import functional

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.training import chance
from gammabeta.lab.outcome import Axis, Effect, Outcome, Picture, Room, Series, Table, bars, measured
from gammabeta.lab.sequences.networks import ARMS, build_sequence_network, networks_of
from gammabeta.lab.sequences.training import BATCH, batch_of, seeds_of, steps_of, trained
from gammabeta.lab.sources import load_sequences
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import Verdict

EXACT = False
KIND = "sequences"

JUDGED = ("none", "padded", "masked", "layer")
MARGIN = (-2.0, 2.0)
ROUNDING = 1e-9


@versioned(1)
def moved(*, task: Mapping[str, Any], network: str, arm: str, seed: int) -> dict[str, Any]:
    """The largest change of a score, in training and in evaluation, when as much padding is appended again; float64."""
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


def measure(experiment: Experiment) -> Outcome:
    seeds = seeds_of(experiment)
    networks = networks_of(experiment)
    source = dict(experiment.sources["sequences"])
    rates, found, tuned = trained(experiment, JUDGED)
    keys = [(network, arm) for network in networks for arm in JUDGED]
    accuracy = {key: [100 * (1 - result["error"]) for result in found[key]] for key in keys}
    moving = {key: [100 * (1 - result["moving_error"]) for result in found[key]] for key in keys}
    moves = dict(
        zip(
            keys,
            experiment.run(
                [
                    Trial(f"{__name__}:moved", {"task": source, "network": n, "arm": a, "seed": seeds[0]})
                    for n, a in keys
                ]
            ),
            strict=True,
        )
    )
    settings: dict[str, Any] = {"unit": "percentage points", "margin": MARGIN, "direction": "above"}

    def less(network: str, other: str) -> list[float]:
        return [a - b for a, b in zip(accuracy[network, "layer"], accuracy[network, other], strict=True)]

    by_other = {
        other: [
            measured(f"{network}: LayerNorm less {ARMS[other]}", less(network, other), **settings)
            for network in networks
        ]
        for other in ("padded", "masked")
    }
    overall = measured(
        f"LayerNorm less {ARMS['padded']}, median of the networks",
        [median(of_seed) for of_seed in zip(*(less(network, "padded") for network in networks), strict=True)],
        **settings,
    )
    by_moving = measured(
        f"with moving averages, LayerNorm less {ARMS['padded']}, median of the networks",
        [
            median(
                a - b
                for a, b in zip(
                    (moving[n, "layer"][seed] for n in networks),
                    (moving[n, "padded"][seed] for n in networks),
                    strict=True,
                )
            )
            for seed in range(len(seeds))
        ],
        **settings,
    )
    wrong = sum(moves[network, "masked"]["training"] > ROUNDING for network in networks)
    exact = Effect.exactly("networks whose masked BatchNorm moves with padding", wrong, len(networks), "networks")
    data = load_sequences(source)
    by_chance = chance(data)
    reached = {network: 1 - tuned[network, "layer"]["error"] for network in networks}
    room = Room(
        all(value > 2 * by_chance for value in reached.values()),
        "validation accuracy with LayerNorm: "
        + ", ".join(f"{network} {value:.2f}" for network, value in reached.items())
        + f"; twice chance is {2 * by_chance:.2f}",
    )
    verdict: Verdict = "contradicted" if wrong else overall.verdict
    each = ", ".join(
        f"{network}: LayerNorm {mean(accuracy[network, 'layer']):.1f}, padded BatchNorm "
        f"{mean(accuracy[network, 'padded']):.1f} ({effect.verdict}), masked {mean(accuracy[network, 'masked']):.1f}, "
        f"none {mean(accuracy[network, 'none']):.1f} %"
        for network, effect in zip(networks, by_other["padded"], strict=True)
    )
    most = max(moves[network, "padded"]["training"] for network in networks)
    return Outcome(
        verdict=verdict if room.holds else "no room here",
        sentence=(
            f"LayerNorm is {overall.value:+.1f} points [{overall.low:.1f}, {overall.high:.1f}] above BatchNorm over "
            f"padding (with moving averages {by_moving.value:+.1f}); {each}; "
            f"appended padding moves padded BatchNorm's training outputs by up to {most:.2f}, masked "
            f"BatchNorm's {'not at all' if not wrong else f'in {wrong} networks'}"
        ),
        effects=[overall, *by_other["padded"], *by_other["masked"], by_moving, exact],
        room=room,
        pictures=[
            bars(
                "Test accuracy with LayerNorm, less that with BatchNorm",
                "Above 0: LayerNorm is better. 95 % interval over seeds.",
                "network and arm",
                Axis("difference", "percentage points"),
                [overall, *by_other["padded"], *by_other["masked"], by_moving],
            ),
            Picture(
                "Change of a score when padding is appended",
                "Largest change over a batch, freshly initialized, in training; in evaluation nothing moves.",
                "bar",
                Axis("network"),
                Axis("change of a score"),
                [
                    Series(ARMS[arm], networks, [moves[network, arm]["training"] for network in networks])
                    for arm in JUDGED
                ],
            ),
        ],
        tables=[
            Table(
                "Test accuracy, mean over seeds, and movement",
                [
                    "network",
                    "arm",
                    "rate",
                    "accuracy, %",
                    "with moving averages, %",
                    "moves in training",
                    "moves in evaluation",
                ],
                [
                    [
                        *(n, ARMS[a], 2.0 ** rates[n, a], mean(accuracy[n, a]), mean(moving[n, a])),
                        *(moves[n, a]["training"], moves[n, a]["evaluation"]),
                    ]
                    for n, a in keys
                ],
            )
        ],
        settings=f"{len(seeds)} seeds, {steps_of(experiment)} steps",
        trials=experiment.trials,
    )
