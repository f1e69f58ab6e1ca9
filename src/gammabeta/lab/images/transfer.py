"""Transfer: a part of a task to pretrain on, another part as the target, and networks pretrained by the recipe."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.task import Split, Task
from gammabeta.lab.images.together import GroupedLinear
from gammabeta.lab.images.training import Training, fit
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import error_then_loss, tune

EPOCHS, BATCH = 20, 32
TARGETS = {"rotated": "rotated", "classes": "new classes"}


@dataclass(frozen=True)
class Transfer:
    """The pretraining images, and the target's: a pool to draw from, validation and test."""

    source: Split
    source_validation: Split
    pool: Split
    validation: Split
    test: Split


def transfer(task: Task, target: str) -> Transfer:
    """Split the task for a target; no image of the target is pretrained on.

    Args:
        target: ``"rotated"``: pretrain on three quarters of the training images; the target is the last quarter,
            rotated. ``"classes"``: pretrain on the first half of the classes; the target is the second half.
    """
    if target == "rotated":
        last = torch.arange(len(task.train)) % 4 == 3
        return Transfer(
            _chosen(task.train, ~last),
            task.validation,
            rotated(_chosen(task.train, last)),
            rotated(task.validation),
            rotated(task.test),
        )
    parts = (task.train, task.validation, task.test)
    old, new = ([_chosen(part, (part.y_n < task.classes // 2) == first) for part in parts] for first in (True, False))
    return Transfer(old[0], old[1], new[0], new[1], new[2])


def _chosen(split: Split, which_n: Tensor) -> Split:
    return Split(split.x_nchw[which_n], split.y_n[which_n])


def rotated(split: Split) -> Split:
    """Rotate by 90°, which moves pixels without interpolation; by 180° where the images are not square."""
    square = split.x_nchw.shape[2] == split.x_nchw.shape[3]
    return Split(split.x_nchw.rot90(1 if square else 2, (2, 3)).contiguous(), split.y_n)


def few(pool: Split, per_class: int, seed: int) -> Split:
    """Draw ``per_class`` images of every class in the pool, or all where it has fewer."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool), generator=generator)
    index = torch.cat([order[pool.y_n[order] == label][:per_class] for label in pool.y_n.unique()])
    return Split(pool.x_nchw[index], pool.y_n[index])


def head(model: nn.Module) -> nn.Module:
    """Return the last linear or convolutional layer."""
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d | GroupedLinear)][-1]


def length(images: int) -> int:
    """Return the number of pretraining steps for that many images."""
    return EPOCHS * max(1, images // BATCH)


@lru_cache(maxsize=64)
def pretrained(settings: str) -> nn.Module:
    """Pretrain a network by the recipe and recalibrate its running statistics on the pretraining images.

    Callers must copy it.

    Args:
        settings: task, network, norm, learning rate, seed and target, as canonical JSON, so that they can be a key.
    """
    how = json.loads(settings)
    source = transfer(load(how["task"]), how["target"]).source
    chosen = {key: how[key] for key in ("network", "norm", "rate", "seed")}
    training = Training(batch_size=min(BATCH, len(source)), steps=length(len(source)), **chosen, **RECIPE)
    model = fit(load(how["task"]), source, training).model
    gb.recalibrate(model, source.x_nchw.split(256))
    return model


@versioned(1)
def linear_source(*, task: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Train a linear classifier on the pretraining images; a pretrained network should do at least as well."""
    from sklearn.linear_model import LogisticRegression

    parts = transfer(load(task), target)
    model = LogisticRegression(max_iter=300).fit(parts.source.x_nchw.flatten(1).numpy(), parts.source.y_n.numpy())
    validation = parts.source_validation
    return {"accuracy": float(model.score(validation.x_nchw.flatten(1).numpy(), validation.y_n.numpy()))}


def linear_accuracies(experiment: Experiment, targets: Sequence[str]) -> dict[str, float]:
    """Return a linear classifier's accuracy on what networks are pretrained for, by target."""
    trials = [
        Trial(f"{__name__}:linear_source", {"task": dict(experiment.source), "target": target}) for target in targets
    ]
    found = experiment.run(trials)
    return {target: float(result["accuracy"]) for target, result in zip(targets, found, strict=True)}


def pretraining_rates(
    experiment: Experiment, networks: Sequence[Mapping[str, Any]], norms: Sequence[str]
) -> dict[tuple[str, str], float]:
    """Find the pretraining's learning rate by network and norm, on three replicates that give no results."""
    keys = [(network, norm) for network in networks for norm in norms]
    steps = length(len(experiment.task.train))
    arms = [
        {"network": dict(network), "norm": norm, "batch_size": BATCH, "steps": steps, **RECIPE}
        for network, norm in keys
    ]
    exponents = tune(experiment, arms, error_then_loss, tuning=experiment.tuning_seeds(3, 3))
    return {(describe(network), norm): 2.0**best for (network, norm), best in zip(keys, exponents, strict=True)}
