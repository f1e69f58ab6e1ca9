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

import math
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.training import chance
from gammabeta.lab.outcome import Axis, Effect, Outcome, Picture, Room, Series, Table, bars, measured
from gammabeta.lab.sequences.networks import ARMS, build_sequence_network, exact_statistics
from gammabeta.lab.sources import load_sequences
from gammabeta.lab.task import Sequences
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import error_then_loss, tune
from gammabeta.lab.verdict import Verdict

EXACT = False
KIND = "sequences"

JUDGED = ("none", "padded", "masked", "layer")
MARGIN = (-2.0, 2.0)
BATCH = 32
RATES = (-9, -7, -5)
ROUNDING = 1e-9
POPULATION = 512  # training sequences that the statistics for evaluation come from
Cell = tuple[str, str]  # network, arm
LOST: dict[str, Any] = {"error": 1.0, "loss": None, "moving_error": 1.0}


def batch_of(split: Sequences, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sequences at ``index``, padded to the longest of them, with their mask and labels."""
    lengths = split.lengths_n[index]
    longest = int(lengths.max())
    return split.x_ntf[index, :longest], gb.lengths_to_mask(lengths, longest), split.y_n[index]


@versioned(3)
def classified(
    *, task: Mapping[str, Any], network: str, arm: str, rate: float, steps: int, seed: int, report: str,
    batch_size: int = BATCH,
) -> dict[str, Any]:  # fmt: skip
    """Train by Adam; error and loss on the split that is reported, with exact statistics, and the error with moving
    averages."""
    data = load_sequences(task)
    model = build_sequence_network(network, data.features, data.classes, arm, 2 * data.train.x_ntf.shape[1], seed)
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        x, mask, y = batch_of(data.train, torch.randint(len(data.train), (batch_size,), generator=generator))
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x, mask), y)
        if not torch.isfinite(loss):
            return LOST
        loss.backward()
        optimizer.step()
    split: Sequences = getattr(data, report)
    model.eval()
    moving_error, _ = judged(model, split)
    population = torch.arange(min(POPULATION, len(data.train)))
    with exact_statistics(model, *batch_of(data.train, population)[:2]):
        error, final_loss = judged(model, split)
    return {"error": error, "loss": final_loss, "moving_error": moving_error}


@torch.no_grad()
def judged(model: nn.Module, split: Sequences) -> tuple[float, float | None]:
    """Share of wrong answers and mean cross entropy; scores that are not finite are wrong everywhere."""
    parts = [batch_of(split, index) for index in torch.arange(len(split)).split(200)]
    scores = torch.cat([model(x, mask) for x, mask, _ in parts])
    if not bool(torch.isfinite(scores).all()):
        return 1.0, None
    wrong = (scores.argmax(dim=1) != split.y_n).float().mean()
    return float(wrong), float(functional.cross_entropy(scores, split.y_n))


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


def networks_of(experiment: Experiment) -> list[str]:
    return ["GRU", "Transformer, pre-norm"] + ([] if experiment.quick else ["Transformer, post-norm"])


def seeds_of(experiment: Experiment) -> list[int]:
    return experiment.seeds(3, 12)


def steps_of(experiment: Experiment) -> int:
    return 120 if experiment.quick else 400


def trained(
    experiment: Experiment, arms: Sequence[str], batch_size: int = BATCH
) -> tuple[dict[Cell, int], dict[Cell, list[dict[str, Any]]], dict[Cell, dict[str, Any]]]:
    """Each network with each arm at its own best rate: that rate's exponent, the results on every seed, and that on the
    validation split for which the rate was chosen."""
    cells = [(network, arm) for network in networks_of(experiment) for arm in arms]
    base = {"task": dict(experiment.sources["sequences"]), "steps": steps_of(experiment)}
    base |= {} if batch_size == BATCH else {"batch_size": batch_size}
    seeds = seeds_of(experiment)

    def trial(cell: Mapping[str, Any], exponent: int, seed: int, report: str) -> Trial:
        return Trial(f"{__name__}:classified", {**base, **cell, "rate": 2.0**exponent, "seed": seed, "report": report})

    # Without norms there is no before and after them: both Transformers are one, trained once.
    same = {("Transformer, post-norm", "none"): "Transformer, pre-norm"}
    settings = [{"network": same.get((network, arm), network), "arm": arm} for network, arm in cells]
    tuning = experiment.tuning_seed
    rates = tune(
        experiment,
        settings,
        error_then_loss,
        make=lambda cell, exponent: trial(cell, exponent, tuning, "validation"),
        coarse=RATES,
    )
    at_best = list(zip(settings, rates, strict=True))
    tuned = experiment.run([trial(cell, rate, tuning, "validation") for cell, rate in at_best])
    results = iter(experiment.run([trial(cell, rate, seed, "test") for cell, rate in at_best for seed in seeds]))
    return (
        dict(zip(cells, rates, strict=True)),
        {cell: [next(results) for _ in seeds] for cell in cells},
        dict(zip(cells, tuned, strict=True)),
    )


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
