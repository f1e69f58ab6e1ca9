"""A text as a task: a language to model, character by character."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TextTask:
    """A text to model character by character: tokens (n,) int64, the characters' indices in ``vocabulary``."""

    name: str
    description: str
    vocabulary: str
    train_n: torch.Tensor
    validation_n: torch.Tensor
    test_n: torch.Tensor
