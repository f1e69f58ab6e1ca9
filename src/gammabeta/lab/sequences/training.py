"""Training runs on sequences: Adam, a learning rate that falls as half a cosine, each arm at its own best rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.sequences.networks import build_sequence_network, exact_statistics, networks_of
from gammabeta.lab.sequences.task import Sequences
from gammabeta.lab.sources import load_sequences
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import error_then_loss, tune

BATCH = 32
RATES = (-9, -7, -5)
POPULATION = 512  # the training sequences whose statistics are used in evaluation
Cell = tuple[str, str]  # network, arm
LOST: dict[str, Any] = {"error": 1.0, "loss": None, "moving_error": 1.0}


def batch_of(split: Sequences, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sequences at ``index``, padded to the longest of them, with their mask and labels."""
    lengths = split.lengths_n[index]
    longest = int(lengths.max())
    return split.x_ntf[index, :longest], gb.lengths_to_mask(lengths, longest), split.y_n[index]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of one trial of :func:`classified`.

    Attributes:
        task: as :func:`gammabeta.lab.sources.load_sequences` takes it.
        network, arm: as :func:`gammabeta.lab.sequences.networks.build_sequence_network` takes them.
        rate: the learning rate at the start; it falls to 0 as half a cosine.
        seed: decides the initialization and the batches.
        report: the split that is reported: ``"validation"`` while tuning, ``"test"`` after it.
    """

    task: Mapping[str, Any]
    network: str
    arm: str
    rate: float
    steps: int
    seed: int
    report: str
    batch_size: int = BATCH


@versioned(3)
def classified(**settings: Any) -> dict[str, Any]:
    """Train one network by Adam.

    Args:
        settings: the fields of :class:`Run`.

    Returns:
        ``error``, ``loss``: on the reported split, with exact statistics. ``moving_error``: with moving averages.
    """
    run = Run(**settings)
    data = load_sequences(run.task)
    longest = 2 * data.train.x_ntf.shape[1]
    model = build_sequence_network(run.network, data.features, data.classes, run.arm, longest, run.seed)
    optimizer = torch.optim.Adam(model.parameters(), run.rate, fused=True)
    generator = torch.Generator().manual_seed(run.seed)
    for step in range(run.steps):
        optimizer.param_groups[0]["lr"] = run.rate * 0.5 * (1 + math.cos(math.pi * step / run.steps))
        x, mask, y = batch_of(data.train, torch.randint(len(data.train), (run.batch_size,), generator=generator))
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x, mask), y)
        if not torch.isfinite(loss):
            return LOST
        loss.backward()
        optimizer.step()
    split: Sequences = getattr(data, run.report)
    model.eval()
    moving_error, _ = judged(model, split)
    population = torch.arange(min(POPULATION, len(data.train)))
    with exact_statistics(model, *batch_of(data.train, population)[:2]):
        error, final_loss = judged(model, split)
    return {"error": error, "loss": final_loss, "moving_error": moving_error}


@torch.no_grad()
def judged(model: nn.Module, split: Sequences) -> tuple[float, float | None]:
    """Return the share of wrong answers and the mean cross entropy.

    Where any score is not finite, all answers are wrong and the loss is None.
    """
    parts = [batch_of(split, index) for index in torch.arange(len(split)).split(200)]
    scores = torch.cat([model(x, mask) for x, mask, _ in parts])
    if not bool(torch.isfinite(scores).all()):
        return 1.0, None
    wrong = (scores.argmax(dim=1) != split.y_n).float().mean()
    return float(wrong), float(functional.cross_entropy(scores, split.y_n))


def seeds_of(experiment: Experiment) -> list[int]:
    return experiment.seeds(3, 12)


def steps_of(experiment: Experiment) -> int:
    return 120 if experiment.quick else 400


def trained(
    experiment: Experiment, arms: Sequence[str], batch_size: int = BATCH
) -> tuple[dict[Cell, int], dict[Cell, list[dict[str, Any]]], dict[Cell, dict[str, Any]]]:
    """Train each network with each arm at its own best learning rate.

    Returns:
        By (network, arm): the exponent of 2 of that rate; the test results, one per seed; and the result on the
        validation split, on the tuning seed, by which the rate was chosen.
    """
    cells = [(network, arm) for network in networks_of(experiment) for arm in arms]
    base = {"task": dict(experiment.sources["sequences"]), "steps": steps_of(experiment)}
    base |= {} if batch_size == BATCH else {"batch_size": batch_size}
    seeds = seeds_of(experiment)

    def trial(cell: Mapping[str, Any], exponent: int, seed: int, report: str) -> Trial:
        return Trial(f"{__name__}:classified", {**base, **cell, "rate": 2.0**exponent, "seed": seed, "report": report})

    # Without norms, pre-norm and post-norm are the same Transformer, which is trained once.
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
    at_best = dict(zip(cells, zip(settings, rates, strict=True), strict=True))
    tuned = experiment.grid(cells, [tuning], lambda cell, seed: trial(*at_best[cell], seed, "validation"))
    results = experiment.grid(cells, seeds, lambda cell, seed: trial(*at_best[cell], seed, "test"))
    return dict(zip(cells, rates, strict=True)), results, {cell: of_cell[0] for cell, of_cell in tuned.items()}
