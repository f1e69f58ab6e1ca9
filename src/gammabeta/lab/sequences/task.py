"""Classification of sequences of variable length: the task and its splits."""

from dataclasses import dataclass

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
    """Classification of sequences of variable length."""

    name: str
    description: str
    classes: int
    train: Sequences
    validation: Sequences
    test: Sequences

    @property
    def features(self) -> int:
        return self.train.x_ntf.shape[2]
