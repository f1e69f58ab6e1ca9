"""Training runs on text: Adam with a warm-up and a rate that falls as half a cosine, each arm at its own best rate."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gammabeta.lab.comparison import seconds_a_step
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.sources import load_text
from gammabeta.lab.text.networks import decoder
from gammabeta.lab.text.task import TextTask
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import tune

JUDGED = ("none", "padded", "layer", "rms")
RATES = (-10, -8, -6)
WARM_UP, WORST = 50, 10.0
BATCH = 16


def windows(tokens_n: torch.Tensor, batch: int, context: int, generator: torch.Generator) -> torch.Tensor:
    """(batch, context + 1) tokens from places drawn by ``generator``."""
    starts = torch.randint(len(tokens_n) - context - 1, (batch, 1), generator=generator)
    return tokens_n[starts + torch.arange(context + 1)]


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
