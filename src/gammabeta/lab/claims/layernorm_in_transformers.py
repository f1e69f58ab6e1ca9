"""Language models use LayerNorm or RMSNorm.

Question: In a small language model, what do no normalization, BatchNorm, LayerNorm and RMSNorm achieve, and what do
they cost?

Claim: Transformers for language use LayerNorm or RMSNorm; RMSNorm is as good and cheaper.

Criterion: Four conditions. Test loss in nats per character, paired by seed: RMSNorm minus LayerNorm is within ±0.03,
BatchNorm minus LayerNorm is above 0.03, and so is BatchNorm minus RMSNorm. The time of LayerNorm over that of RMSNorm,
forward and backward, by the same kind of kernel, is above 1.05. Supported if all hold, contradicted if one is decided
the other way. Time with torch's kernels, and of a whole training step, are separate effects.

Room: With LayerNorm the validation loss on the tuning seed is 0.5 nats below that of always predicting the characters'
frequencies.

Method: A causal pre-norm decoder over characters, trained by Adam with 50 steps of warm-up and then half a cosine down
to 0. (At the constant learning rate used first, the noise of the last batches was as large as the margin.) The learning
rate is tuned for each arm on a separate seed. BatchNorm takes its statistics over batch and positions. In training they
include later positions, so it sees the future; in evaluation they are moving averages and causal. LayerNorm and RMSNorm
see only one position. Times are medians of calls in turns on (4096, 256), one thread, one value per seed.

Settings: quick: width 32, 2 layers, context 32, batches of 16, 500 steps (learning rates tuned at 200), 3 seeds. Full:
width 48, 3 layers, context 48, 800 steps, 16 seeds (6 at first, which was inconclusive).

Sources: Vaswani et al. 2017 (arXiv 1706.03762); Ba et al. 2016 (1607.06450); Zhang & Sennrich 2019 (1910.07467); Shen
et al. 2020, PowerNorm (2003.07845)

Known: In a pilot run with 3 layers and 500 steps: LayerNorm 1.70, RMSNorm 1.71, BatchNorm 1.74, none 1.79; at 150 steps
nothing differed.
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
from gammabeta.lab.sources import load_text
from gammabeta.lab.text.networks import ARMS
from gammabeta.lab.text.training import JUDGED, blind_loss, seeds_of, shape_of, steps_of, timed, trained
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import Direction, weakest

EXACT = False
KIND = "text"

MARGIN = (-0.03, 0.03)
FASTER = (1 / 1.05, 1.05)


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
        rates: the exponent of the learning rate.
        found: one result per seed.
        of_norms: seconds of LayerNorm and RMSNorm, gammabeta's and torch's, one mapping per seed.
        of_steps: seconds of a training step of each arm, one mapping per seed.
    """

    rates: Mapping[str, int]
    found: Mapping[str, list[dict[str, Any]]]
    of_norms: Sequence[Mapping[str, float]]
    of_steps: Sequence[Mapping[str, float]]

    def losses(self, arm: str) -> list[float]:
        return [result["loss"] for result in self.found[arm]]

    def difference(self, one: str, other: str, direction: Direction) -> Effect:
        """Return the effect of one arm's test loss minus the other's."""
        return Criterion(unit="nats per character", margin=MARGIN, direction=direction).effect(
            f"{ARMS[one]} minus {ARMS[other]}", differences(self.losses(one), self.losses(other))
        )


def measure(experiment: Experiment) -> Outcome:
    """Compare the losses of the norms and the times of LayerNorm and RMSNorm."""
    seeds, shape = seeds_of(experiment), shape_of(experiment)
    rates, found, tuned = trained(experiment, JUDGED, shape)
    trials = [Trial(f"{__name__}:times", {"seed": seed}) for seed in seeds]
    of_norms = [record["timing"] for record in experiment.records(trials)]
    seen = Measured(rates, found, of_norms, timed(experiment, shape))
    same = seen.difference("rms", "layer", "within")
    below = [seen.difference("padded", "layer", "above"), seen.difference("padded", "rms", "above")]
    none = seen.difference("none", "layer", "above")
    faster, by_torch = (
        _ratio(f"time of LayerNorm over RMSNorm, {whose}", seen.of_norms, f", {whose}")
        for whose in ("gammabeta", "torch")
    )
    of_step = _ratio("time of a step, LayerNorm over RMSNorm", seen.of_steps)
    room = _room(experiment, tuned["layer"]["loss"])
    return Outcome(
        verdict=(
            weakest([same.verdict, *(effect.verdict for effect in below), faster.verdict])
            if room.holds
            else "no room here"
        ),
        sentence=(
            ", ".join(f"{ARMS[arm]} {mean(seen.losses(arm)):.3f}" for arm in ("layer", "rms", "padded", "none"))
            + f" nats per character; RMSNorm minus LayerNorm {same.value:+.3f} [{same.low:.3f}, {same.high:.3f}] "
            f"({same.verdict}), BatchNorm minus LayerNorm {below[0].value:+.3f} [{below[0].low:.3f}, "
            f"{below[0].high:.3f}] ({below[0].verdict}); LayerNorm takes {faster.value:.2f} times RMSNorm's time "
            f"[{faster.low:.2f}, {faster.high:.2f}], a step {of_step.value:.2f} times"
        ),
        effects=[same, *below, faster, none, by_torch, of_step],
        room=room,
        pictures=[
            Picture(
                "Test loss by step",
                "Each arm at its best learning rate; mean and range over seeds.",
                "line",
                Axis("step"),
                Axis("test loss", "nats per character"),
                [_course(arm, found[arm]) for arm in JUDGED],
            ),
            bars(
                "Differences of the test loss",
                "95 % interval over seeds.",
                "pair",
                Axis("difference", "nats per character"),
                [same, *below, none],
            ),
        ],
        tables=[_table(seen)],
        settings=f"{len(seeds)} seeds, {steps_of(experiment)} steps, {shape}",
        trials=experiment.trials,
    )


def _ratio(name: str, seconds: Sequence[Mapping[str, float]], whose: str = "") -> Effect:
    """Return the effect of the time of LayerNorm over that of RMSNorm."""
    logs = [math.log(of_seed[f"layer{whose}"] / of_seed[f"rms{whose}"]) for of_seed in seconds]
    return Criterion(unit="times", margin=FASTER, direction="above", null=1.0, ratio=True).effect(name, logs)


def _room(experiment: Experiment, reached: float) -> Room:
    blind = blind_loss(load_text(dict(experiment.sources["text"])))
    return Room(
        reached < blind - 0.5,
        f"validation loss with LayerNorm {reached:.2f}, of the characters' frequencies {blind:.2f}",
    )


def _course(arm: str, runs: list[dict[str, Any]]) -> Series:
    """Draw the test loss by step, over the runs that did not end early."""
    whole = [run["course"] for run in runs if len(run["course"]) == max(len(r["course"]) for r in runs)]
    at = [step for step, _ in whole[0]]
    values = [[loss for _, loss in of_step] for of_step in zip(*whole, strict=True)]
    return Series(ARMS[arm], at, [mean(v) for v in values], [min(v) for v in values], [max(v) for v in values])


def _table(seen: Measured) -> Table:
    rows: list[list[Any]] = []
    for arm in JUDGED:
        of_step = 1e3 * median(seconds[arm] for seconds in seen.of_steps)
        of_norm = [
            1e6 * median(seconds[f"{arm}, {whose}"] for seconds in seen.of_norms) if arm in ("layer", "rms") else None
            for whose in ("gammabeta", "torch")
        ]
        rows.append([ARMS[arm], 2.0 ** seen.rates[arm], mean(seen.losses(arm)), of_step, *of_norm])
    return Table(
        "Loss and time",
        [
            "arm",
            "learning rate",
            "test loss, nats",
            "ms per step",
            "µs of the norm, gammabeta",
            "µs of the norm, torch",
        ],
        rows,
    )
