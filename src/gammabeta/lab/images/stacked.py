"""Networks that are trained by the recipe side by side, and stay at hand afterwards for whatever a claim measures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from gammabeta.lab.images.descent import descend
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.task import Task
from gammabeta.lab.images.together import UnstackableError, stack
from gammabeta.lab.images.training import places
from gammabeta.lab.sources import load


@dataclass(frozen=True)
class Trained:
    """Networks after training, stacked into one in evaluation mode.

    Attributes:
        model: the members, as :func:`gammabeta.lab.images.together.stack` makes them.
        tasks: each member's own split of the data.
        finite: of each member, whether its loss stayed finite.
    """

    model: nn.Module
    tasks: Sequence[Task]
    finite: Sequence[bool]


def joinable(settings: Mapping[str, Any]) -> bool:
    """Whether a trial can run together with others: its network is known to stack."""
    return settings["network"]["kind"] in ("mlp", "resnet")


def one_by_one(
    function: Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]], several: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Run trials together, or one by one where their networks hold a layer that does not stack."""
    try:
        return function(several)
    except UnstackableError:
        return [function([settings])[0] for settings in several]


def side_by_side(models: Sequence[nn.Module]) -> nn.Module:
    """Stack networks; a single one that does not stack stays as it is.

    Raises:
        UnstackableError: several networks hold a layer that does not stack.
    """
    try:
        return stack(models)
    except UnstackableError:
        if len(models) > 1:
            raise
        return models[0]


def train_together(
    several: Sequence[Mapping[str, Any]], prepare: Callable[[nn.Module], None] = lambda model: None
) -> Trained:
    """Train networks that differ only in learning rate, seed and split, by the recipe.

    Args:
        several: settings with task, network, norm, batch_size, steps, rate and seed.
        prepare: changes the stacked network before training.

    Raises:
        UnstackableError: several networks hold a layer that does not stack.
    """
    first = several[0]
    tasks = [load(settings["task"]) for settings in several]
    model = side_by_side(
        [
            build(task, first["network"], first["norm"], settings["seed"])
            for task, settings in zip(tasks, several, strict=True)
        ]
    )
    prepare(model)
    orders = [
        places(task.train, first["batch_size"], first["steps"], settings["seed"])
        for task, settings in zip(tasks, several, strict=True)
    ]
    finite = descend(model, [task.train for task in tasks], orders, [settings["rate"] for settings in several])
    return Trained(model.eval(), tasks, finite)
