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
from statistics import mean, median
from typing import Any

import torch
from torch import nn

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.outcome import Axis, Outcome, Picture, Room, Series, Table, bars, measured
from gammabeta.lab.sources import load_text
from gammabeta.lab.text.networks import ARMS
from gammabeta.lab.text.training import JUDGED, blind_loss, seeds_of, shape_of, steps_of, timed, trained
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import weakest

EXACT = False
KIND = "text"

MARGIN = (-0.03, 0.03)
FASTER = (1 / 1.05, 1.05)


@versioned(1)
def times(*, seed: int, repeats: int = 40) -> dict[str, Any]:
    """``timing``: seconds of LayerNorm and RMSNorm, ours and torch's, forward and backward, medians in turns."""
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


def measure(experiment: Experiment) -> Outcome:
    seeds = seeds_of(experiment)
    source = dict(experiment.sources["text"])
    shape = shape_of(experiment)
    rate, found, tuned = trained(experiment, JUDGED, shape)
    control = tuned["layer"]["loss"]
    losses = {arm: [result["loss"] for result in of_arm] for arm, of_arm in found.items()}
    timings = [r["timing"] for r in experiment.records([Trial(f"{__name__}:times", {"seed": seed}) for seed in seeds])]
    of_steps = timed(experiment, shape)

    def difference(one: str, other: str, direction: Any) -> Any:
        values = [a - b for a, b in zip(losses[one], losses[other], strict=True)]
        name = f"{ARMS[one]} less {ARMS[other]}"
        return measured(name, values, unit="nats a character", margin=MARGIN, direction=direction)

    def ratio(name: str, values: list[float]) -> Any:
        logs = [math.log(value) for value in values]
        return measured(name, logs, unit="times", margin=FASTER, direction="above", null=1.0, ratio=True)

    same = difference("rms", "layer", "within")
    below = [difference("padded", "layer", "above"), difference("padded", "rms", "above")]
    faster = ratio(
        "time of LayerNorm over RMSNorm, gammabeta", [t["layer, gammabeta"] / t["rms, gammabeta"] for t in timings]
    )
    other = [
        difference("none", "layer", "above"),
        ratio("time of LayerNorm over RMSNorm, torch", [t["layer, torch"] / t["rms, torch"] for t in timings]),
        ratio("time of a step, LayerNorm over RMSNorm", [t["layer"] / t["rms"] for t in of_steps]),
    ]
    blind = blind_loss(load_text(source))
    room = Room(
        control < blind - 0.5,
        f"validation loss with LayerNorm {control:.2f}, of the characters' frequencies {blind:.2f}",
    )
    verdict = weakest([same.verdict, *(effect.verdict for effect in below), faster.verdict])
    return Outcome(
        verdict=verdict if room.holds else "no room here",
        sentence=(
            ", ".join(f"{ARMS[arm]} {mean(losses[arm]):.3f}" for arm in ("layer", "rms", "padded", "none"))
            + f" nats a character; RMSNorm less LayerNorm {same.value:+.3f} [{same.low:.3f}, {same.high:.3f}] "
            f"({same.verdict}), BatchNorm less LayerNorm {below[0].value:+.3f} [{below[0].low:.3f}, "
            f"{below[0].high:.3f}] ({below[0].verdict}); LayerNorm takes {faster.value:.2f} times RMSNorm's time "
            f"[{faster.low:.2f}, {faster.high:.2f}], a step {other[2].value:.2f} times"
        ),
        effects=[same, *below, faster, *other],
        room=room,
        pictures=[
            Picture(
                "Test loss by step",
                "Each arm at its best rate; mean and range over seeds.",
                "line",
                Axis("step"),
                Axis("test loss", "nats a character"),
                [_course(arm, found[arm]) for arm in JUDGED],
            ),
            bars(
                "Differences of the test loss",
                "95 % interval over seeds.",
                "pair",
                Axis("difference", "nats a character"),
                [same, *below, other[0]],
            ),
        ],
        tables=[
            Table(
                "Loss and time",
                ["arm", "rate", "test loss, nats", "ms a step", "µs of the norm, gammabeta", "µs of the norm, torch"],
                [
                    [
                        ARMS[arm],
                        2.0 ** rate[arm],
                        mean(losses[arm]),
                        1e3 * median(t[arm] for t in of_steps),
                        *(
                            1e6 * median(t[f"{arm}, {whose}"] for t in timings) if arm in ("layer", "rms") else None
                            for whose in ("gammabeta", "torch")
                        ),
                    ]
                    for arm in JUDGED
                ],
            )
        ],
        settings=f"{len(seeds)} seeds, {steps_of(experiment)} steps, {shape}",
        trials=experiment.trials,
    )


def _course(arm: str, runs: list[dict[str, Any]]) -> Series:
    whole = [run["course"] for run in runs if len(run["course"]) == max(len(r["course"]) for r in runs)]
    at = [step for step, _ in whole[0]]
    values = [[loss for _, loss in of_step] for of_step in zip(*whole, strict=True)]
    return Series(ARMS[arm], at, [mean(v) for v in values], [min(v) for v in values], [max(v) for v in values])
