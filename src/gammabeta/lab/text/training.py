"""Training runs on text: Adam, a warm-up and half a cosine for the learning rate, each arm at its own best rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gammabeta.lab.comparison import seconds_per_step
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
    """Draw windows of tokens: (batch, context + 1)."""
    starts = torch.randint(len(tokens_n) - context - 1, (batch, 1), generator=generator)
    return tokens_n[starts + torch.arange(context + 1)]


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of each next token, in nats."""
    return functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def blind_loss(data: TextTask) -> float:
    """Return the loss, in nats per character, of always predicting the characters' frequencies in the training text."""
    counts = torch.bincount(data.train_n).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of one trial of :func:`language_model`.

    Attributes:
        task: as :func:`gammabeta.lab.sources.load_text` takes it.
        arm, width, layers, context: as :func:`gammabeta.lab.text.networks.decoder` takes them.
        rate: the largest learning rate.
        seed: decides the initialization and the windows.
        report: the split that is reported: ``"validation"`` while tuning, ``"test"`` after it.
        batch: windows per batch.
    """

    task: Mapping[str, Any]
    arm: str
    rate: float
    steps: int
    seed: int
    report: str
    width: int
    layers: int
    context: int
    batch: int

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, the first of which is 1: a linear warm-up times half a cosine that ends at 0."""
        return self.rate * min(1.0, step / WARM_UP) * 0.5 * (1 + math.cos(math.pi * (step - 1) / self.steps))


@versioned(3)
def language_model(**settings: Any) -> dict[str, Any]:
    """Train the decoder by Adam.

    Args:
        settings: the fields of :class:`Run`.

    Returns:
        ``loss``: at the end, on 128 fixed windows of the reported split, in nats per character. ``course``: (step,
        loss), every 100 steps and at the end.
    """
    run = Run(**settings)
    data = load_text(run.task)
    model = decoder(data, run.arm, run.width, run.layers, run.context, run.seed)
    optimizer = torch.optim.Adam(model.parameters(), run.rate, fused=True)
    generator = torch.Generator().manual_seed(run.seed)
    split = data.test_n if run.report == "test" else data.validation_n
    held = windows(split, 128, run.context, torch.Generator().manual_seed(0))

    def look() -> float:
        with torch.no_grad():
            model.eval()
            value = float(loss_of(model, held))
            model.train()
        return value if math.isfinite(value) else WORST

    course: list[tuple[int, float]] = []
    for step in range(1, run.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = run.rate_at(step)
        optimizer.zero_grad()
        loss = loss_of(model, windows(data.train_n, run.batch, run.context, generator))
        if not torch.isfinite(loss):
            return {"loss": WORST, "course": course}
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == run.steps:
            course.append((step, look()))
    return {"loss": course[-1][1], "course": course}


@versioned(2)
def step_times(*, task: Mapping[str, Any], seed: int, repeats: int = 30, **shape: int) -> dict[str, Any]:
    """Time a training step of each arm, in turns.

    Args:
        shape: width, layers, context and batch, as :func:`shape_of` returns them.

    Returns:
        ``timing``: seconds per step by arm, medians.
    """
    data = load_text(task)
    generator = torch.Generator().manual_seed(seed)
    width, layers, context = shape["width"], shape["layers"], shape["context"]
    models = {arm: decoder(data, arm, width, layers, context, seed) for arm in JUDGED}
    batches = [windows(data.train_n, shape["batch"], context, generator) for _ in range(repeats)]
    return {"repeats": repeats, "timing": seconds_per_step(models, loss_of, batches)}


def shape_of(experiment: Experiment, batch: int = BATCH) -> dict[str, int]:
    """Return the size of the decoder and of its windows."""
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
    """Train each arm at its own best learning rate.

    Returns:
        By arm: the exponent of 2 of that rate; the test results, one per seed; and the result on the validation split,
        on the tuning seed, by which the rate was chosen.
    """
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
    tuned = experiment.grid(arms, [tuning], lambda arm, seed: trial(arm, rate[arm], seed, "validation", of_tuning))
    results = experiment.grid(arms, seeds, lambda arm, seed: trial(arm, rate[arm], seed, "test", steps))
    return rate, results, {arm: of_arm[0] for arm, of_arm in tuned.items()}


def timed(experiment: Experiment, shape: Mapping[str, int]) -> list[dict[str, float]]:
    """Return the seconds per training step by arm, one dict per seed."""
    settings = {"task": dict(experiment.sources["text"]), **shape}
    trials = [Trial(f"{__name__}:step_times", {**settings, "seed": seed}) for seed in seeds_of(experiment)]
    return [record["timing"] for record in experiment.records(trials)]
