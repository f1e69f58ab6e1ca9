"""A task: data of one kind with a fixed split, standardized by the training part."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Kind = Literal["images", "sequences", "text"]


class TaskError(ValueError):
    """Data or a model that the study cannot use: one sentence with what was expected, what came and what to do."""


@dataclass(frozen=True)
class Split:
    """Images (n, channels, height, width) float32 and labels (n,) int64."""

    x_nchw: torch.Tensor
    y_n: torch.Tensor

    def __len__(self) -> int:
        return len(self.y_n)


@dataclass(frozen=True)
class Task:
    """Classification of images: rates are tuned on ``validation``, what is reported comes from ``test``."""

    name: str
    description: str
    classes: int
    train: Split
    validation: Split
    test: Split

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.x_nchw.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Sequences:
    """Sequences (n, time, features) float32, zero from each one's length (n,) int64 on, and labels (n,) int64."""

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


@dataclass(frozen=True)
class TextTask:
    """A language to model, character by character: tokens (n,) int64, numbers of characters in ``vocabulary``."""

    name: str
    description: str
    vocabulary: str
    train_n: torch.Tensor
    validation_n: torch.Tensor
    test_n: torch.Tensor


AnyTask = Task | SequenceTask | TextTask


def standardized(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    name: str,
    description: str,
    classes: int,
) -> Task:
    """A task of images (n, c, h, w), each channel less its training mean and over its training standard deviation."""
    mean_1c11 = train[0].mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    std_1c11 = train[0].std(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    if not np.all(std_1c11 > 0):
        raise TaskError(f"{name}: every training image has the same pixels in some channel: nothing can be learned.")

    def split(part: tuple[np.ndarray, np.ndarray]) -> Split:
        x_nchw, y_n = part
        scaled = ((x_nchw - mean_1c11) / std_1c11).astype(np.float32)
        return Split(torch.from_numpy(scaled), torch.from_numpy(y_n.astype(np.int64)))

    return Task(name, description, classes, split(train), split(validation), split(test))
