"""Networks that are trained by the recipe side by side, and stay at hand afterwards for whatever a claim measures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.lab.answers import packed
from gammabeta.lab.images.descent import descend, judged
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.task import Split, Task
from gammabeta.lab.images.together import UnstackableError, stack
from gammabeta.lab.images.training import POPULATION, Judged, exact_statistics, places, subset
from gammabeta.lab.sources import load


@dataclass(frozen=True)
class Trained:
    """Networks after training, stacked into one in evaluation mode.

    Attributes:
        model: the members, as :func:`gammabeta.lab.images.together.stack` makes them.
        tasks: each member's own split of the data.
        own: the images that each member was trained on.
        finite: of each member, whether its loss stayed finite.
    """

    model: nn.Module
    tasks: Sequence[Task]
    own: Sequence[Split]
    finite: Sequence[bool]

    @property
    def populations(self) -> list[Tensor]:
        """The images that exact statistics come from, of each member."""
        return [split.x_nchw[:POPULATION] for split in self.own]


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
    """Stack networks; a single one stays as it is, such as a user's, which need not stack.

    Raises:
        UnstackableError: several networks hold a layer that does not stack.
    """
    return stack(models) if len(models) > 1 else models[0]


Make = Callable[[Task, Mapping[str, Any]], nn.Module]


def usual(task: Task, settings: Mapping[str, Any]) -> nn.Module:
    """Build the network that settings describe."""
    return build(task, settings["network"], settings["norm"], settings["seed"])


def train_together(
    several: Sequence[Mapping[str, Any]], prepare: Callable[[nn.Module], None] = lambda model: None, make: Make = usual
) -> Trained:
    """Train networks that differ only in learning rate, seed and split, by the recipe.

    Args:
        several: settings with task, batch_size, steps, rate and seed, and what ``make`` takes. With images, the network
            is trained on that many of the training images, drawn by the seed.
        prepare: changes the stacked network before training.
        make: builds one network.

    Raises:
        UnstackableError: several networks hold a layer that does not stack.
    """
    first = several[0]
    tasks = [load(settings["task"]) for settings in several]
    model = side_by_side([make(task, settings) for task, settings in zip(tasks, several, strict=True)])
    prepare(model)
    own = [
        subset(task.train, first["images"], task.classes, 0.0, settings["seed"]) if "images" in first else task.train
        for task, settings in zip(tasks, several, strict=True)
    ]
    orders = [
        places(split, first["batch_size"], first["steps"], settings["seed"])
        for split, settings in zip(own, several, strict=True)
    ]
    finite = descend(model, own, orders, [settings["rate"] for settings in several])
    return Trained(model.eval(), tasks, own, finite)


def judge_both(trained: Trained, splits: Sequence[Split], populations: Sequence[Tensor]) -> list[tuple[Judged, Judged]]:
    """Judge each member by its moving averages, and by exact statistics of a population."""
    moving = judged(trained.model, splits)
    with exact_statistics(trained.model, torch.cat(list(populations), dim=1)):
        exact = judged(trained.model, splits)
    lost = [Judged(torch.ones(len(split), dtype=torch.bool), None) for split in splits]
    return [
        (one, other) if finite else (none, none)
        for one, other, none, finite in zip(moving, exact, lost, trained.finite, strict=True)
    ]


def result_of(pairs: Sequence[tuple[Judged, Judged]], trained: Trained, member: int, tested: bool) -> dict[str, Any]:
    """Return errors as `gammabeta.lab.images.training.train` does.

    Args:
        pairs: what :func:`judge_both` says of the member, on the reported split and on the validation split.
        tested: whether the reported split is the test split.
    """
    each = [
        {"error": exact.error, "loss": exact.loss, "moving_error": moving.error, "moving_loss": moving.loss}
        for moving, exact in pairs
    ]
    shared = tested and trained.tasks[member].keeps_test
    return {
        **each[0],
        "validation": each[1] if tested else None,
        "wrong": packed(pairs[0][1].wrong) if shared else None,
        "moving_wrong": packed(pairs[0][0].wrong) if shared else None,
    }


def results(trained: Trained, report: str) -> list[dict[str, Any]]:
    """Return the members' errors on the reported split and on the validation split."""
    tested = report == "test"
    checks = judge_both(trained, [task.validation for task in trained.tasks], trained.populations)
    ends = judge_both(trained, [task.test for task in trained.tasks], trained.populations) if tested else checks
    return [
        result_of([end, check], trained, member, tested)
        for member, (end, check) in enumerate(zip(ends, checks, strict=True))
    ]
