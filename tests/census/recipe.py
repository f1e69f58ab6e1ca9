"""What recipes of training share: small networks, data that can be learned, and a register."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gammabeta as gb

STEPS, SIZE, CLASSES = 24, 32, 4
# Handed to a recipe: watch(model, optimizer) is the context in which it trains.
Watching = Callable[..., AbstractContextManager[Any]]
Recipe = Callable[[Watching], None]
RECIPES: dict[str, Recipe] = {}


def recipe(function: Recipe) -> Recipe:
    """Register a recipe under its function's name."""
    RECIPES[function.__name__] = function
    return function


def cnn(**options: Any) -> nn.Sequential:
    """Return a small CNN with BatchNorms: backbone and head."""
    backbone = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16, **options), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16, **options), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    return nn.Sequential(backbone, nn.Linear(16, CLASSES))


class Block(nn.Module):
    """A Transformer's layer with the norms before its parts."""

    def __init__(self, width: int, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.mixer = nn.MultiheadAttention(width, 2, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        x = x + self.mixer(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.inner(self.norm2(x))


class Language(nn.Module):
    """A small language model."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm, words: int = 20, width: int = 16) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(words, width), nn.ModuleList([Block(width, norm) for _ in range(2)])
        self.norm, self.head = norm(width), nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        y = self.words(x)
        for block in self.blocks:
            y = block(y, mask)
        return self.head(self.norm(y))


def images(steps: int = STEPS, size: int = SIZE, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images whose class is a pattern under noise, shuffled."""
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(-1))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        y = torch.randint(CLASSES, (size,), generator=generator)
        yield patterns[y] + torch.randn(size, 3, 8, 8, generator=generator), y


def sentences(steps: int = STEPS, length: int = 10) -> Iterator[Tensor]:
    """Yield sentences in which each word is three more than the one before."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        first = torch.randint(20, (SIZE, 1), generator=generator)
        yield (first + 3 * torch.arange(length)) % 20


def sgd(model: nn.Module, lr: float = 0.05, **options: Any) -> torch.optim.Optimizer:
    """Return the usual SGD of a CNN."""
    return torch.optim.SGD(gb.parameter_groups(model, 5e-4), lr=lr, momentum=0.9, **options)


def adamw(model: nn.Module, lr: float = 1e-3) -> torch.optim.Optimizer:
    """Return the usual AdamW of a Transformer."""
    return torch.optim.AdamW(gb.parameter_groups(model, 0.05), lr=lr)


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take a step of training."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def next_word(model: nn.Module, x: Tensor) -> Tensor:
    """Return a language model's loss."""
    return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
