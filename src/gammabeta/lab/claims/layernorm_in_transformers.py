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
from statistics import mean, median
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.comparison import seconds_a_step
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.outcome import Axis, Outcome, Picture, Room, Series, Table, bars, measured
from gammabeta.lab.sequences.networks import ARMS, Transformer
from gammabeta.lab.sources import load_text
from gammabeta.lab.task import TextTask
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import tune
from gammabeta.lab.verdict import weakest

EXACT = False
KIND = "text"

JUDGED = ("none", "padded", "layer", "rms")  # no padding in text: "padded" is plain BatchNorm
NAMES = {**ARMS, "padded": "BatchNorm"}
MARGIN = (-0.03, 0.03)
FASTER = (1 / 1.05, 1.05)
RATES = (-10, -8, -6)
WARM_UP, WORST = 50, 10.0
BATCH = 16


def windows(tokens_n: torch.Tensor, batch: int, context: int, generator: torch.Generator) -> torch.Tensor:
    """(batch, context + 1) tokens from places drawn by ``generator``."""
    starts = torch.randint(len(tokens_n) - context - 1, (batch, 1), generator=generator)
    return tokens_n[starts + torch.arange(context + 1)]


def decoder(data: TextTask, arm: str, width: int, layers: int, context: int, seed: int) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(0, len(data.vocabulary), arm, width=width, layers=layers, longest=context)


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of each next token, nats."""
    return functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def blind_loss(data: TextTask) -> float:
    """Nats a character of always predicting the characters' frequencies in the training text."""
    counts = torch.bincount(data.train_n).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())


@versioned(3)
def language_model(
    *, task: Mapping[str, Any], arm: str, rate: float, steps: int, seed: int, report: str, width: int, layers: int,
    context: int, batch: int,
) -> dict[str, Any]:  # fmt: skip
    """Train the decoder; loss on 128 fixed windows of the split that is reported, nats a character, and its course."""
    data = load_text(task)
    model = decoder(data, arm, width, layers, context, seed)
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    split = data.test_n if report == "test" else data.validation_n
    held = windows(split, 128, context, torch.Generator().manual_seed(0))

    def look() -> float:
        with torch.no_grad():
            model.eval()
            value = float(loss_of(model, held))
            model.train()
        return value if math.isfinite(value) else WORST

    course: list[tuple[int, float]] = []
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / WARM_UP) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        optimizer.zero_grad()
        loss = loss_of(model, windows(data.train_n, batch, context, generator))
        if not torch.isfinite(loss):
            return {"loss": WORST, "course": course}
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps:
            course.append((step, look()))
    return {"loss": course[-1][1], "course": course}


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


@versioned(2)
def step_times(
    *, task: Mapping[str, Any], seed: int, width: int, layers: int, context: int, batch: int, repeats: int = 30
) -> dict[str, Any]:
    """``timing``: seconds of a training step of each arm, medians of steps in turns."""
    data = load_text(task)
    generator = torch.Generator().manual_seed(seed)
    models = {arm: decoder(data, arm, width, layers, context, seed) for arm in JUDGED}
    batches = [windows(data.train_n, batch, context, generator) for _ in range(repeats)]
    return {"repeats": repeats, "timing": seconds_a_step(models, loss_of, batches)}


def shape_of(experiment: Experiment, batch: int = BATCH) -> dict[str, int]:
    """The decoder's, and its windows'."""
    if experiment.quick:
        return {"width": 32, "layers": 2, "context": 32, "batch": batch}
    return {"width": 48, "layers": 3, "context": 48, "batch": batch}


def steps_of(experiment: Experiment) -> int:
    return 500 if experiment.quick else 800


def seeds_of(experiment: Experiment) -> list[int]:
    return experiment.seeds(3, 16)


def trained(
    experiment: Experiment, arms: Sequence[str], shape: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, list[dict[str, Any]]], dict[str, dict[str, Any]]]:
    """Each arm at its own best rate: that rate's exponent, the results on every seed, and that on the validation split
    for which the rate was chosen."""
    steps, seeds = steps_of(experiment), seeds_of(experiment)
    base = {"task": dict(experiment.sources["text"]), **shape}

    def trial(arm: str, exponent: int, seed: int, report: str, of_steps: int) -> Trial:
        settings = {**base, "arm": arm, "rate": 2.0**exponent, "steps": of_steps, "seed": seed, "report": report}
        return Trial(f"{__name__}:language_model", settings)

    tuning = experiment.tuning_seed
    of_tuning = 200 if experiment.quick else steps
    exponents = tune(
        experiment,
        [{"arm": arm} for arm in arms],
        lambda result: float(result["loss"]),
        make=lambda arm, exponent: trial(arm["arm"], exponent, tuning, "validation", of_tuning),
        coarse=RATES,
    )
    rate = dict(zip(arms, exponents, strict=True))
    tuned = experiment.run([trial(arm, rate[arm], tuning, "validation", of_tuning) for arm in arms])
    results = iter(experiment.run([trial(arm, rate[arm], seed, "test", steps) for arm in arms for seed in seeds]))
    return rate, {arm: [next(results) for _ in seeds] for arm in arms}, dict(zip(arms, tuned, strict=True))


def timed(experiment: Experiment, shape: Mapping[str, int]) -> list[dict[str, float]]:
    """Seconds of a training step of each arm, one dict a seed."""
    settings = {"task": dict(experiment.sources["text"]), **shape}
    trials = [Trial(f"{__name__}:step_times", {**settings, "seed": seed}) for seed in seeds_of(experiment)]
    return [record["timing"] for record in experiment.records(trials)]


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
        name = f"{NAMES[one]} less {NAMES[other]}"
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
            ", ".join(f"{NAMES[arm]} {mean(losses[arm]):.3f}" for arm in ("layer", "rms", "padded", "none"))
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
                        NAMES[arm],
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
    return Series(NAMES[arm], at, [mean(v) for v in values], [min(v) for v in values], [max(v) for v in values])
