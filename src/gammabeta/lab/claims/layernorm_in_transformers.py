"""Language models use LayerNorm or RMSNorm.

Question: In a small language model, what do no normalization, BatchNorm, LayerNorm and RMSNorm achieve, and what do
they cost? Does Dropout still help beside LayerNorm?

Claim: Transformers for language use LayerNorm or RMSNorm; RMSNorm is as good and cheaper.

Criterion: Four conditions. Test loss in nats per character, paired by replicate: RMSNorm minus LayerNorm is within
±0.03, BatchNorm minus LayerNorm is above 0.03, and so is BatchNorm minus RMSNorm. The time of LayerNorm over that of
RMSNorm, forward and backward, by the same kind of kernel, is above 1.05. Supported if all hold, contradicted if one is
decided the other way. Time with torch's kernels and of a whole training step, no normalization minus LayerNorm, and
LayerNorm without Dropout minus LayerNorm with it are separate effects.

Room: A norm is needed for something. At some learning rate of the coarse search, LayerNorm's mean validation loss is
0.5 nats below that of always predicting the characters' frequencies, and that without normalization is worse than
LayerNorm's by more than 0.03.

Method: A causal pre-norm decoder over characters, trained by the recipe: AdamW, decay 0.1 on the weights of linear
layers (not of norms, biases, embeddings and positions), 10 % warm-up, then half a cosine down to 0, clipping of the
gradient's norm at 1. Every replicate has its own validation part, and chooses each arm's learning rate by it. The
coarse search is extended until both ends are worse than the best by 0.03. Test losses are those as deployed: in
evaluation BatchNorm uses moving averages and is causal. In training its statistics, over batch and positions, include
later positions, so it sees the future. LayerNorm and RMSNorm see only one position. Intervals include the spread over
the test part's windows. Dropout at 0.1 follows attention and MLP, before the skip connection. Times are medians of
calls in turns on (4096, 256), one thread, one value per replicate.

Settings: quick: width 16, 2 layers, context 32, batches of 16, 200 steps (coarse search: 100), 3 replicates. Full:
width 48, 3 layers, context 48, 800 steps, 12 replicates; for a text of a million characters, width 128, 4 layers,
context 64, 1,500 steps.

Sources: Vaswani et al. 2017 (arXiv 1706.03762); Ba et al. 2016 (1607.06450); Zhang & Sennrich 2019 (1910.07467); Shen
et al. 2020, PowerNorm (2003.07845); removing normalization at two amounts of data (2604.23434)

Known: In a pilot run with 3 layers and 500 steps: LayerNorm 1.70, RMSNorm 1.71, BatchNorm 1.74, none 1.79; at 150 steps
nothing differed. 2604.23434: without LayerNorm the loss is lower on 1 M tokens and higher on 118 M.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from torch import nn

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.procedure import Chosen, headroom
from gammabeta.lab.sequences.networks import users_own
from gammabeta.lab.sources import load_text
from gammabeta.lab.text.networks import ARMS
from gammabeta.lab.text.training import (
    blind_loss,
    precision_of,
    seeds_of,
    shape_of,
    shorter_of,
    steps_of,
    timed,
    trained,
)
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import Direction, weakest

EXACT = False
KIND = "text"

MARGIN = (-0.03, 0.03)
FASTER = (1 / 1.05, 1.05)
JUDGED = ("none", "padded", "layer", "rms")
DROPOUT = "layer, Dropout"
ARM_NAMES = {**ARMS, DROPOUT: "LayerNorm with Dropout"}


@versioned(1)
def times(*, seed: int, repeats: int = 40) -> dict[str, Any]:
    """Time LayerNorm and RMSNorm, ours and torch's, forward and backward; medians in turns, in seconds."""
    layers: dict[str, nn.Module] = {
        "layer, gammabeta": gb.LayerNorm(256), "rms, gammabeta": gb.RMSNorm(256),
        "layer, torch": nn.LayerNorm(256), "rms, torch": nn.RMSNorm(256, eps=1e-5),
    }  # fmt: skip
    torch.manual_seed(seed)
    x = torch.randn(4096, 256, requires_grad=True)
    gradient = torch.randn(4096, 256)
    taken: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(repeats + 5):
        for name, layer in layers.items():
            start = time.perf_counter()
            layer(x).backward(gradient)
            if turn >= 5:
                taken[name].append(time.perf_counter() - start)
    return {"repeats": repeats, "timing": {name: median(values) for name, values in taken.items()}}


@dataclass(frozen=True)
class Measured:
    """What was measured of every arm.

    Attributes:
        chosen: the results at each replicate's own learning rate.
        of_norms: seconds of LayerNorm and RMSNorm, gammabeta's and torch's, one mapping per replicate.
        of_steps: seconds of a training step of each arm, one mapping per replicate.
    """

    chosen: Mapping[str, Chosen]
    of_norms: Sequence[Mapping[str, float]]
    of_steps: Sequence[Mapping[str, float]]

    def losses(self, arm: str) -> list[float]:
        return [float(result["loss"]) for result in self.chosen[arm].results]

    def difference(self, one: str, other: str, direction: Direction) -> Effect:
        """Return the effect of one arm's test loss minus the other's."""
        return Criterion(unit="nats per character", margin=MARGIN, direction=direction).effect(
            f"{ARM_NAMES[one]} minus {ARM_NAMES[other]}",
            differences(self.losses(one), self.losses(other)),
            precision_of(self.chosen[one].results, self.chosen[other].results),
        )


def measure(experiment: Experiment) -> Outcome:
    """Compare the losses of the norms and the times of LayerNorm and RMSNorm."""
    seeds, shape = seeds_of(experiment), shape_of(experiment)
    arms: dict[str, dict[str, Any]] = {arm: {"arm": arm} for arm in JUDGED}
    if users_own(experiment, "text") is None:
        arms[DROPOUT] = {"arm": "layer", "dropout": 0.1}
    chosen = trained(experiment, arms, shape, MARGIN[1], shorter_of(experiment))
    trials = [Trial(f"{__name__}:times", {"seed": seed}) for seed in seeds]
    of_norms = [record["timing"] for record in experiment.records(trials)]
    seen = Measured(chosen, of_norms, timed(experiment, JUDGED, shape))
    same = seen.difference("rms", "layer", "within")
    below = [seen.difference("padded", "layer", "above"), seen.difference("padded", "rms", "above")]
    beside = [seen.difference("none", "layer", "above")]
    beside += [seen.difference("layer", DROPOUT, "above")] if DROPOUT in arms else []
    faster, by_torch = (
        _ratio(f"time of LayerNorm over RMSNorm, {whose}", seen.of_norms, f", {whose}")
        for whose in ("gammabeta", "torch")
    )
    of_step = _ratio("time of a step, LayerNorm over RMSNorm", seen.of_steps)
    room = _room(experiment, chosen)
    return Outcome(
        verdict=(
            weakest([same.verdict, *(effect.verdict for effect in below), faster.verdict])
            if room.holds
            else "no room here"
        ),
        sentence=(
            ", ".join(f"{ARM_NAMES[arm]} {mean(seen.losses(arm)):.3f}" for arm in arms)
            + f" nats per character; RMSNorm minus LayerNorm {same.value:+.3f} [{same.low:.3f}, {same.high:.3f}] "
            f"({same.verdict}), BatchNorm minus LayerNorm {below[0].value:+.3f} [{below[0].low:.3f}, "
            f"{below[0].high:.3f}] ({below[0].verdict}); LayerNorm takes {faster.value:.2f} times RMSNorm's time "
            f"[{faster.low:.2f}, {faster.high:.2f}], a step {of_step.value:.2f} times"
        ),
        effects=[same, *below, faster, *beside, by_torch, of_step],
        room=room,
        pictures=[
            Picture(
                "Test loss by step",
                "Each replicate at its own learning rate; mean and range over replicates.",
                "line",
                Axis("step"),
                Axis("test loss", "nats per character"),
                [_course(arm, chosen[arm].results) for arm in arms],
            ),
            bars(
                "Differences of the test loss",
                "95 % interval over replicates.",
                "pair",
                Axis("difference", "nats per character"),
                [same, *below, *beside],
            ),
        ],
        tables=[_table(seen)],
        settings=f"{len(seeds)} replicates, {steps_of(experiment)} steps, {shape}",
        trials=experiment.trials,
    )


def _ratio(name: str, seconds: Sequence[Mapping[str, float]], whose: str = "") -> Effect:
    """Return the effect of the time of LayerNorm over that of RMSNorm."""
    logs = [math.log(of_seed[f"layer{whose}"] / of_seed[f"rms{whose}"]) for of_seed in seconds]
    return Criterion(unit="times", margin=FASTER, direction="above", null=1.0, ratio=True).effect(name, logs)


def _room(experiment: Experiment, chosen: Mapping[str, Chosen]) -> Room:
    """Look for a learning rate at which LayerNorm learns, and a network without norms is worse."""
    blind = blind_loss(load_text(dict(experiment.sources["text"])))
    layer, none = chosen["layer"].coarse, chosen["none"].coarse
    gains = {e: none[e] - layer[e] for e in layer.keys() & none.keys() if layer[e] < blind - 0.5}
    most = max(gains, key=lambda e: gains[e], default=None)
    if most is None:
        return Room(False, f"no learning rate at which LayerNorm's validation loss is below {blind - 0.5:.2f}")
    return Room(
        gains[most] > MARGIN[1],
        f"at learning rate 2^{most} the validation loss is {layer[most]:.2f} with LayerNorm and {none[most]:.2f} "
        f"without normalization; of the characters' frequencies {blind:.2f}",
    )


def _course(arm: str, runs: list[dict[str, Any]]) -> Series:
    """Draw the test loss by step, over the runs that did not end early."""
    whole = [run["course"] for run in runs if len(run["course"]) == max(len(r["course"]) for r in runs)]
    at = [step for step, _ in whole[0]]
    values = [[loss for _, loss in of_step] for of_step in zip(*whole, strict=True)]
    return Series(ARM_NAMES[arm], at, [mean(v) for v in values], [min(v) for v in values], [max(v) for v in values])


def _table(seen: Measured) -> Table:
    rows: list[list[Any]] = []
    for arm in seen.chosen:
        timed_ones = [seconds[arm] for seconds in seen.of_steps if arm in seconds]
        of_step = 1e3 * median(timed_ones) if timed_ones else None
        of_norm = [
            1e6 * median(seconds[f"{arm}, {whose}"] for seconds in seen.of_norms) if arm in ("layer", "rms") else None
            for whose in ("gammabeta", "torch")
        ]
        of_arm = seen.chosen[arm]
        usable = headroom(of_arm.coarse, MARGIN[1])
        rows.append([ARM_NAMES[arm], of_arm.rate, mean(seen.losses(arm)), usable, of_step, *of_norm])
    return Table(
        "Loss and time",
        [
            "arm",
            "learning rate",
            "test loss, nats",
            "usable learning rates",
            "ms per step",
            "µs of the norm, gammabeta",
            "µs of the norm, torch",
        ],
        rows,
    )
