"""Faults to plant in a network, in its optimizer and in how it was trained: each is a function of a case."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.diagnostics.random_networks import Network, Traits, WithAverage
from torch import nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm2d)


@dataclass
class Case:
    """A model with faults, and all that a check takes with it.

    Attributes:
        model: the model.
        traits: what was drawn.
        batches: the data, as (x, labels).
        inputs: what the check gets as inputs, or None.
        loader: what it gets as loader, or None.
        optimizers: those that train the model.
        scheduler: the one that holds the first of them, or None.
        plateau: a ReduceLROnPlateau, or None.
        after_train: what the training loop calls after `model.train()`.
        meant_frozen: the names of parameters that the user means to keep.
        decay, missing, twice: what is wrong in the optimizer.
    """

    model: nn.Module
    traits: Traits
    batches: list[tuple[torch.Tensor, torch.Tensor]]
    inputs: Any = None
    loader: Any = None
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    scheduler: Any = None
    plateau: Any = None
    after_train: Callable[[], Any] = lambda: None
    meant_frozen: frozenset[str] = frozenset()
    decay: bool = False
    missing: bool = False
    twice: bool = False

    @property
    def network(self) -> Network:
        """The network itself, without an average beside it."""
        return self.model.student if isinstance(self.model, WithAverage) else self.model

    def norms(self, *classes: type[nn.Module], inside: nn.Module | None = None) -> list[Any]:
        """Return the network's norms of these classes."""
        return [m for m in (inside or self.network).modules() if isinstance(m, classes or BATCH_NORMS)]

    def tracking(self) -> list[Any]:
        """Return the BatchNorms that have running statistics."""
        return [m for m in self.norms() if m.running_mean is not None]


def some(draw: random.Random, of: list[Any]) -> list[Any]:
    """Return one, several or all."""
    return [] if not of else draw.sample(of, draw.choice((1, min(2, len(of)), len(of), len(of))))


def stale(case: Case, draw: random.Random) -> bool:
    """A momentum too small for the number of steps: statistics of long ago."""
    chosen = some(draw, case.tracking())
    for norm in chosen:
        norm.momentum = draw.choice((1e-4, 1e-5, 0.1))
        norm.running_mean += 2 * norm.running_var.sqrt() * (torch.rand_like(norm.running_mean) + 0.5)
        norm.running_var *= draw.choice((0.1, 8.0))
    return bool(chosen)


def not_finite_statistics(case: Case, draw: random.Random) -> bool:
    chosen = some(draw, case.tracking())
    for norm in chosen:
        key, value = draw.choice((("running_mean", "nan"), ("running_var", "nan"), ("running_var", "inf")))
        at = draw.choice((slice(1), slice(None)))
        getattr(norm, key)[at] = float(value)
    return bool(chosen)


def lost_buffers(case: Case, draw: random.Random) -> bool:
    """A checkpoint without its buffers, into a new model."""
    chosen = some(draw, case.tracking())
    for norm in chosen:
        norm.reset_running_stats()
    return bool(chosen)


def average_with_its_source_s_buffers(case: Case, draw: random.Random) -> bool:
    if isinstance(case.model, WithAverage) or not case.tracking():
        return False
    average = copy.deepcopy(case.network)
    for parameter in average.parameters():
        parameter += 0.2 * torch.randn_like(parameter) * parameter.abs().mean()
    case.model = WithAverage(case.network, average)
    return True


def decay_on_norms(case: Case, draw: random.Random) -> bool:
    case.decay = True
    return bool(case.norms(*NORMS))


def missing_in_the_optimizer(case: Case, draw: random.Random) -> bool:
    case.missing = True
    return bool(case.norms(*NORMS))


def in_two_optimizers(case: Case, draw: random.Random) -> bool:
    case.twice = True
    return bool(case.norms(*NORMS))


def epsilon(case: Case, draw: random.Random) -> bool:
    chosen = some(draw, case.norms(*NORMS))
    value = draw.choice((0.0, 1e-12, 1e-8, 0.1, 0.8))
    for norm in chosen:
        norm.eps = value
    case.traits.words.append(f"ε {value:g} in {len(chosen)}")
    return bool(chosen)


def momentum_of_tensorflow(case: Case, draw: random.Random) -> bool:
    chosen = some(draw, case.tracking())
    value = draw.choice((0.99, 0.999, 0.9997))
    for norm in chosen:
        norm.momentum = value
    return bool(chosen)


def average_of_all_without_count(case: Case, draw: random.Random) -> bool:
    """momentum=None beside a count of 0: the next batch replaces the statistics."""
    chosen = some(draw, case.tracking())
    for norm in chosen:
        norm.momentum = None
        norm.num_batches_tracked.zero_()
    return bool(chosen)


def tracking_switched_off(case: Case, draw: random.Random) -> bool:
    """`track_running_stats` off after construction, γ and β train."""
    chosen = some(draw, case.tracking())
    for norm in chosen:
        norm.track_running_stats = False
    return bool(chosen)


def dead_scale(case: Case, draw: random.Random) -> bool:
    chosen = [norm for norm in some(draw, case.norms(*NORMS)) if norm.weight is not None]
    for norm in chosen:
        norm.weight[: draw.choice((1, norm.weight.numel() // 2))] = 0.0
    return bool(chosen)


def nan_in_a_parameter(case: Case, draw: random.Random) -> bool:
    parameter = draw.choice(list(case.network.parameters()))
    parameter.view(-1)[0] = float("nan")
    return True


def tiny_variance(case: Case, draw: random.Random) -> bool:
    """A channel that was constant for long."""
    chosen = some(draw, case.tracking())
    for norm in chosen:
        norm.running_var[0] = draw.choice((1e-30, 0.0, 1e12))
    return bool(chosen)


def nothing_trains(case: Case, draw: random.Random) -> bool:
    """Weights for deployment, in training mode."""
    case.network.requires_grad_(False)
    return True


def low_precision(case: Case, draw: random.Random) -> bool:
    """Statistics in half precision beside weights in single, where the layer takes that."""
    chosen = case.tracking()
    for norm in chosen:
        norm.running_mean, norm.running_var = norm.running_mean.bfloat16(), norm.running_var.bfloat16()
    try:
        case.network.eval()(case.batches[0][0])
    except RuntimeError:
        for norm in chosen:
            norm.running_mean, norm.running_var = norm.running_mean.float(), norm.running_var.float()
        return False
    return bool(chosen)


# `Traits` has to know of these before the network is built.
IN_CONSTRUCTION = ("bias", "dropout", "shared", "no running statistics")
# The statistics belong to a network that has these.
IN_WEIGHTS = (epsilon, dead_scale, nan_in_a_parameter)
IN_PLACE = (
    stale,
    not_finite_statistics,
    lost_buffers,
    average_with_its_source_s_buffers,
    decay_on_norms,
    missing_in_the_optimizer,
    in_two_optimizers,
    momentum_of_tensorflow,
    average_of_all_without_count,
    tracking_switched_off,
    tiny_variance,
    low_precision,
    nothing_trains,
)
