"""Training runs on text: AdamW with warm-up, half a cosine and clipping; each replicate at its own learning rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gammabeta.lab.comparison import seconds_per_step
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.interval import Precision
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.sequences.networks import users_own
from gammabeta.lab.sources import load_text
from gammabeta.lab.text.networks import decoder
from gammabeta.lab.text.task import TextTask
from gammabeta.lab.text.user_network import build as build_user_network
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import Grid

RATES = (-8, -6, -4)
WORST = 10.0
BATCH = 16
# Weight decay falls on the weights of linear layers only: not on norms, biases, embeddings and positions.
WARM_UP, DECAY, CLIP = 0.1, 0.1, 1.0
HELD = 256
# From this many characters on, a text has the larger network.
LARGE = 1_000_000


def windows(data: TextTask, batch: int, context: int, generator: torch.Generator, limit: int | None = None) -> Tensor:
    """Draw windows of training tokens: (batch, context + 1), none across the gap that the validation part leaves.

    Args:
        limit: take them from the first that many tokens.
    """
    length = min(len(data.train_n), limit or len(data.train_n))
    joint = data.joint if data.joint is not None and data.joint < length else None
    # starts just before the gap are skipped: those from joint − context on
    count = length - context - (0 if joint is None else context)
    starts = torch.randint(count, (batch, 1), generator=generator)
    if joint is not None:
        starts += context * (starts >= max(0, joint - context))
    return data.train_n[starts + torch.arange(context + 1)]


def held_out(tokens_n: Tensor, context: int) -> Tensor:
    """Return the windows by which a network is judged: at most HELD, spread evenly, none overlapping another."""
    count = min(HELD, len(tokens_n) // (context + 1))
    starts = torch.linspace(0, len(tokens_n) - context - 1, count).long()
    return tokens_n[starts[:, None] + torch.arange(context + 1)]


def losses_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the cross entropy of each next token, averaged over each window, in nats: (…, n) for (…, n, context)."""
    scores = model(tokens[..., :-1])
    each = functional.cross_entropy(scores.flatten(0, -2), tokens[..., 1:].flatten(), reduction="none")
    return each.view(*tokens.shape[:-1], -1).mean(dim=-1)


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean cross entropy of each next token, in nats."""
    return losses_of(model, tokens).mean()


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
        arm, width, layers, context: the norm and the shape, as :func:`gammabeta.lab.text.networks.decoder` takes them.
        rate: the largest learning rate.
        seed: decides the initialization and the windows.
        report: the split that is reported: ``"validation"`` while tuning, ``"test"`` after it.
        batch: windows per batch.
        placement: where the norms are.
        dropout: the rate of Dropout after attention and MLP.
        warm_up: the share of the steps in which the learning rate rises linearly.
        characters: train on the first that many characters of the training part; None for all.
        user: the user's network as settings identify it, in the decoder's place.
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
    placement: str = "pre"
    dropout: float = 0.0
    warm_up: float = WARM_UP
    characters: int | None = None
    user: Mapping[str, Any] | None = None

    def rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step, the first of which is 1.

        It rises linearly to 1 in the warm-up, and then falls to 0 as half a cosine.
        """
        rising = round(self.warm_up * self.steps)
        if step <= rising:
            return step / rising
        return 0.5 * (1 + math.cos(math.pi * (step - 1 - rising) / (self.steps - rising)))

    def build(self, data: TextTask) -> nn.Module:
        """Build the network with its norms, initialized by ``seed``."""
        if self.user is not None:
            return build_user_network(self.user["model"], data, self.arm, self.seed, self.context)
        shape = (self.width, self.layers, self.context)
        return decoder(len(data.vocabulary), self.arm, self.placement, shape, self.seed, self.dropout)

    def batches(self, data: TextTask) -> "Batches":
        return Batches(self, data)


class Batches:
    """The windows of a run, drawn one batch after the other by its seed."""

    def __init__(self, run: Run, data: TextTask) -> None:
        self.run, self.data = run, data
        self.generator = torch.Generator().manual_seed(run.seed)

    def draw(self) -> Tensor:
        return windows(self.data, self.run.batch, self.run.context, self.generator, self.run.characters)


class Judge:
    """What is known of a network in training: its losses on held windows, in evaluation."""

    def __init__(self, run: Run, data: TextTask) -> None:
        self.run = run
        part = data.test_n if run.report == "test" else data.validation_n
        self.reported = held_out(part, run.context)
        self.validation = held_out(data.validation_n, run.context) if run.report == "test" else None
        self.course: list[tuple[int, float]] = []

    @torch.no_grad()
    def _losses(self, model: nn.Module, tokens: Tensor) -> list[float]:
        model.eval()
        found = torch.cat([losses_of(model, part) for part in tokens.split(128)])
        model.train()
        return [round(value, 6) if math.isfinite(value) else WORST for value in found.tolist()]

    def look(self, step: int, model: nn.Module) -> None:
        """Record the loss, every 100 steps."""
        if step % 100 == 0 and step < self.run.steps:
            self.course.append((step, fmean(self._losses(model, self.reported))))

    def result(self, model: nn.Module | None) -> dict[str, Any]:
        """Return the trial's result; None for a network whose loss was not finite."""
        after = self.validation is not None
        if model is None:
            worst = [WORST] * len(self.reported)
            validation = {"loss": WORST} if after else None
            found = {"loss": WORST, "validation": validation, "windows": worst if after else None}
            return {**found, "course": self.course, "diverged": True}
        losses = self._losses(model, self.reported)
        self.course.append((self.run.steps, fmean(losses)))
        return {
            "loss": fmean(losses),
            "validation": None if self.validation is None else {"loss": fmean(self._losses(model, self.validation))},
            "windows": losses if after else None,
            "course": self.course,
            "diverged": None,
        }


def decayed(model: nn.Module) -> list[dict[str, Any]]:
    """Return an optimizer's groups of parameters: the weights of linear layers, which decay, and all others."""
    weights = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    trained_ones = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained_ones if id(p) in weights], "weight_decay": DECAY},
        {"params": [p for p in trained_ones if id(p) not in weights], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@versioned(4, together="gammabeta.lab.text.together")
def language_model(**settings: Any) -> dict[str, Any]:
    """Train the decoder by AdamW.

    Args:
        settings: the fields of :class:`Run`.

    Returns:
        - ``loss``: at the end, on at most 256 windows spread evenly over the reported split, in nats per character,
          evaluated as deployed: BatchNorm uses moving averages. 10 where it is not finite.
        - ``validation``: ``{"loss"}`` on the validation split, where ``report`` is ``"test"``; otherwise None.
        - ``windows``: the loss of each test window; None where ``report`` is ``"validation"``.
        - ``course``: (step, loss), every 100 steps and at the end.
        - ``diverged``: True where the loss was not finite in training; otherwise None.

    Source: Loshchilov & Hutter 2019 (decay); Pascanu et al. 2013 (clipping of the gradient's norm, at 1).
    """
    run = Run(**settings)
    data = load_text(run.task)
    model = run.build(data).train()
    optimizer = torch.optim.AdamW(decayed(model), run.rate, fused=True)
    batches, judge = run.batches(data), Judge(run, data)
    for step in range(1, run.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = run.rate * run.rate_factor(step)
        optimizer.zero_grad()
        loss = loss_of(model, batches.draw())
        if not torch.isfinite(loss):
            return judge.result(None)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        judge.look(step, model)
    return judge.result(model)


@versioned(3)
def step_times(
    *, task: Mapping[str, Any], arms: Sequence[str], seed: int, user: Mapping[str, Any] | None = None,
    repeats: int = 30, **shape: int,
) -> dict[str, Any]:  # fmt: skip
    """Time a training step of each arm, in turns.

    Args:
        shape: width, layers, context and batch, as :func:`shape_of` returns them.

    Returns:
        ``timing``: seconds per step by arm, medians.
    """
    data = load_text(task)
    at: dict[str, Any] = {
        "task": task,
        "rate": 0.0,
        "steps": repeats,
        "seed": seed,
        "report": "validation",
        "user": user,
        **shape,
    }
    runs = {arm: Run(arm=arm, **at) for arm in arms}
    models = {arm: run.build(data).train() for arm, run in runs.items()}
    drawn = runs[arms[0]].batches(data)
    batches = [drawn.draw() for _ in range(repeats)]
    return {"repeats": repeats, "timing": seconds_per_step(models, loss_of, batches)}


def shape_for(data: TextTask, *, quick: bool) -> dict[str, int]:
    """Return width, layers and context of a text's decoder; a text of a million characters has a larger one."""
    if quick:
        return {"width": 16, "layers": 2, "context": 32}
    if len(data.train_n) >= 0.9 * LARGE:
        return {"width": 128, "layers": 4, "context": 64}
    return {"width": 48, "layers": 3, "context": 48}


def shape_of(experiment: Experiment, batch: int = BATCH) -> dict[str, int]:
    """Return the size of the decoder and of its batches."""
    return {**shape_for(load_text(experiment.sources["text"]), quick=experiment.is_small), "batch": batch}


def steps_of(experiment: Experiment) -> int:
    if experiment.is_small:
        return 200
    return 1500 if shape_of(experiment)["width"] == 128 else 800


def shorter_of(experiment: Experiment) -> dict[str, int] | None:
    """Return what the coarse search has other than the results: half of the steps if quick, a quarter at scale."""
    share = 4 if experiment.at_scale else 2
    return {"steps": steps_of(experiment) // share} if experiment.quick else None


def seeds_of(experiment: Experiment) -> list[int]:
    return experiment.seeds(3, 12)


def score(result: Mapping[str, Any]) -> float:
    """Score a result by its loss."""
    return float(result["loss"])


def make(experiment: Experiment, settings: Mapping[str, Any], exponent: int, replicate: int, report: str) -> Trial:
    """Make a replicate's trial, with its own split, initialization and windows."""
    own = {"task": experiment.drawn(replicate, "text"), "seed": replicate, "report": report}
    return Trial(f"{__name__}:language_model", {**settings, **own, "rate": 2.0**exponent})


def trained(
    experiment: Experiment,
    arms: Mapping[str, Mapping[str, Any]],
    shape: Mapping[str, int],
    widest: float | None = None,
    shorter: Mapping[str, Any] | None = None,
) -> dict[str, Chosen]:
    """Train each arm, each replicate at the learning rate that it chose by its validation part.

    Args:
        arms: by name, what distinguishes each: ``arm`` and, where needed, other fields of :class:`Run`.
        widest, shorter: as :class:`gammabeta.lab.tuning.Grid` has them.
    """
    user = users_own(experiment, "text")
    base = {**shape, "steps": steps_of(experiment), **({} if user is None else {"user": dict(user)})}
    settings = {name: {**base, **arm} for name, arm in arms.items()}
    grid = Grid(RATES, widest, shorter)
    return choose_rates(
        experiment, settings, seeds_of(experiment), score, grid, lambda *given: make(experiment, *given)
    )


def precision_of(ones: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> Precision:
    """Return the precision of differences of test losses: the test windows, which all replicates share, limit it."""
    by_arm = [np.mean([result["windows"] for result in arm], axis=0) for arm in (ones, others)]
    variance = float(np.var(by_arm[0] - by_arm[1], ddof=1))
    return Precision(samples=len(by_arm[0]), variance=variance, rates=False)


def timed(experiment: Experiment, arms: Sequence[str], shape: Mapping[str, int]) -> list[dict[str, float]]:
    """Return the seconds per training step by arm, one dict per seed."""
    user = users_own(experiment, "text")
    settings = {"task": dict(experiment.sources["text"]), "arms": list(arms), **shape}
    settings |= {} if user is None else {"user": dict(user)}
    trials = [Trial(f"{__name__}:step_times", {**settings, "seed": seed}) for seed in seeds_of(experiment)]
    return [record["timing"] for record in experiment.records(trials)]
