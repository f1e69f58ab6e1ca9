"""Classification of sequences of variable length: the task and its splits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Sequences:
    """Sequences (n, time, features) float32 with lengths (n,) int64 and labels (n,) int64; zero from the length on."""

    x_ntf: torch.Tensor
    lengths_n: torch.Tensor
    y_n: torch.Tensor

    def __len__(self) -> int:
        return len(self.y_n)


@dataclass(frozen=True)
class SequenceTask:
    """Classification of sequences of variable length.

    Attributes:
        redraw: makes the task of another split of the same sequences, by its number from 1 on, with parts of the same
            sizes.
        keeps_test: whether all splits share the test sequences, because the data set has a test set of its own.
        available: how many samples of the data set each part is drawn from, by ``"train"``, ``"validation"`` and
            ``"test"``; empty where all are used.
    """

    name: str
    description: str
    classes: int
    train: Sequences
    validation: Sequences
    test: Sequences
    redraw: Callable[[int], "SequenceTask"] = field(repr=False, compare=False)
    keeps_test: bool
    available: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def features(self) -> int:
        return self.train.x_ntf.shape[2]
