"""A text as a task: a language to model, character by character."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class TextTask:
    """A text to model character by character: tokens (n,) int64, the characters' indices in ``vocabulary``.

    Attributes:
        redraw: makes the task of another split of the same text, by its number from 1 on: with the same test part.
        joint: the index in ``train_n`` of the first token after a gap, which the validation part leaves there; None
            where the training part is contiguous.
    """

    name: str
    description: str
    vocabulary: str
    train_n: torch.Tensor
    validation_n: torch.Tensor
    test_n: torch.Tensor
    redraw: Callable[[int], "TextTask"] = field(repr=False, compare=False)
    joint: int | None = None
    keeps_test: bool = True
