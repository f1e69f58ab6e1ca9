"""Classification of images: the task and its splits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from gammabeta.lab.standardization import Standardization
from gammabeta.lab.task import TaskError


@dataclass(frozen=True)
class Split:
    """Images (n, channels, height, width) float32 and labels (n,) int64."""

    x_nchw: torch.Tensor
    y_n: torch.Tensor

    def __len__(self) -> int:
        return len(self.y_n)


@dataclass(frozen=True)
class Task:
    """Classification of images. Learning rates are tuned on ``validation``; reported results come from ``test``.

    Attributes:
        redraw: makes the task of another split of the same images, by its number from 1 on: stratified, with parts of
            the same sizes.
        keeps_test: whether all splits share the test images, because the data set has a test set of its own.
        available: how many samples of the data set each part is drawn from, by ``"train"``, ``"validation"`` and
            ``"test"``; empty where all are used.
    """

    name: str
    description: str
    classes: int
    train: Split
    validation: Split
    test: Split
    redraw: Callable[[int], "Task"] = field(repr=False, compare=False)
    keeps_test: bool
    available: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.x_nchw.shape[1:]
        return channels, height, width


Part = tuple[np.ndarray, np.ndarray]  # images (n, c, h, w), labels (n,)


def standardized(
    parts: tuple[Part, Part, Part],
    *,
    name: str,
    description: str,
    classes: int,
    redraw: Callable[[int], Task],
    keeps_test: bool,
) -> Task:
    """Make a task of images (n, c, h, w): each channel minus its training mean, over its training standard deviation.

    The standard deviation divides by the count. ``redraw`` and ``keeps_test`` are those of :class:`Task`.

    Args:
        parts: for training, validation and test.

    Raises:
        TaskError: some channel has one value throughout the training part, or a few values that dwarf all others.
    """
    train, validation, test = parts
    scaling = Standardization.of(train[0], (0, 2, 3), name, "pixels")
    if not np.all(scaling.std > 0):
        raise TaskError(f"{name}: every training image has the same pixels in some channel: nothing can be learned.")

    def split(part: tuple[np.ndarray, np.ndarray]) -> Split:
        x_nchw, y_n = part
        scaled_nchw = scaling.apply(x_nchw, name, "pixels")
        return Split(torch.from_numpy(scaled_nchw), torch.from_numpy(y_n.astype(np.int64)))

    return Task(name, description, classes, split(train), split(validation), split(test), redraw, keeps_test)
