"""Networks on streams of images that come once, several at a time."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.lab.images import stacked
from gammabeta.lab.images.descent import Descent, losses
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.stacked import side_by_side
from gammabeta.lab.images.task import Split, Task
from gammabeta.lab.sources import load

joinable = stacked.joinable
# Images of one class that come in a row where a stream is not shuffled.
RUN = 16
# A stream has no end that a schedule could know: the learning rate is constant.
RECIPE = {"momentum": 0.9}


def streamed(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run trials of ``claims.online_stream:streamed`` that differ only in ``rate``, ``seed`` and split."""
    return stacked.one_by_one(_streamed, several)


def stream_order(split: Split, size: int, order: str, seed: int) -> Tensor:
    """Draw which images each batch of a stream holds: (steps, size); no image comes twice.

    Args:
        order: ``"shuffled"``, or ``"runs"``: up to ``RUN`` images of one class in a row, and then another run.
    """
    generator = torch.Generator().manual_seed(seed)
    row = torch.randperm(len(split), generator=generator)
    if order == "runs":
        runs = [run for label in split.y_n.unique() for run in row[split.y_n[row] == label].split(RUN)]
        row = torch.cat([runs[place] for place in torch.randperm(len(runs), generator=generator).tolist()])
    steps = len(row) // size
    return row[: steps * size].reshape(steps, size)


class _Learners:
    """Stacked networks that answer each batch, by running statistics, before they learn from it."""

    def __init__(self, model: nn.Module, rates: Sequence[float]) -> None:
        self.model, self.descent = model, Descent(model, rates, 1, RECIPE)
        self.finite = torch.ones(len(rates), dtype=torch.bool)

    def learn(self, splits: Sequence[Split], orders: Sequence[Tensor]) -> list[float]:
        """Return the members' shares of wrong answers on a stream of each."""
        wrong = torch.zeros(len(splits))
        for step in range(len(orders[0])):
            index = [order[step] for order in orders]
            images = [split.x_nchw[at] for split, at in zip(splits, index, strict=True)]
            labels = [split.y_n[at] for split, at in zip(splits, index, strict=True)]
            self.model.eval()
            with torch.no_grad():
                scores = self.model(torch.cat(images, dim=1)).unflatten(1, (len(splits), -1))
            answers = scores.argmax(dim=2) != torch.stack(labels, dim=1)
            wrong += (answers | ~torch.isfinite(scores).all(dim=2)).float().mean(dim=0)
            self.model.train()
            each = losses(self.model, images, labels)
            self.finite &= torch.isfinite(each.detach())
            each.sum().backward()
            self.descent.step()
        return [float(sum_) / len(orders[0]) for sum_ in wrong]


def _streamed(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    first, tasks = several[0], [load(settings["task"]) for settings in several]
    model = side_by_side(
        [
            build(task, first["network"], first["norm"], settings["seed"])
            for task, settings in zip(tasks, several, strict=True)
        ]
    )
    learners = _Learners(model, [settings["rate"] for settings in several])

    def orders(splits: Sequence[Split]) -> list[Tensor]:
        return [
            stream_order(split, first["batch_size"], first["order"], settings["seed"])
            for split, settings in zip(splits, several, strict=True)
        ]

    before = [task.train for task in tasks]
    early = learners.learn(before, orders(before))
    after = {name: _after(learners, tasks, name, orders) for name in {"validation", first["report"]}}
    return [
        {
            "error": after[first["report"]][member],
            "loss": None,
            "early_error": early[member],
            "validation": {"error": after["validation"][member], "loss": None} if first["report"] == "test" else None,
        }
        for member in range(len(several))
    ]


def _after(learners: _Learners, tasks: Sequence[Task], name: str, orders: Any) -> list[float]:
    """Go on with one part of the data; the learners stay as they were."""
    splits = [getattr(task, name) for task in tasks]
    own = copy.deepcopy(learners)
    wrong = own.learn(splits, orders(splits))
    return [error if good else 1.0 for error, good in zip(wrong, own.finite.tolist(), strict=True)]
