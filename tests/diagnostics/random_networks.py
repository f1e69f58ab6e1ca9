"""Random small networks with norms of all kinds, each with a backbone and a head, and data of their shape.

A network is a function of a `random.Random`: the same seed gives the same network. `Traits` says what was drawn, so
that a failure can be described in a line.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

CLASSES = 3


@dataclass
class Traits:
    """What was drawn for a network.

    Attributes:
        words: short descriptions, for reports.
        bias: whether layers before norms have a bias.
        dropout: whether dropout comes before norms.
        shared: whether one norm serves two places.
        tracks: whether BatchNorms have running statistics.
        own: whether BatchNorms are of a subclass that adds nothing.
    """

    words: list[str] = field(default_factory=list)
    bias: bool = False
    dropout: bool = False
    shared: bool = False
    tracks: bool = True
    own: bool = False


class OwnNorm1d(nn.BatchNorm1d):
    """A subclass that adds nothing, as many projects have one."""


class OwnNorm2d(nn.BatchNorm2d):
    """A subclass with another default, as many projects have one."""

    def __init__(self, channels: int, momentum: float = 0.05, **options: bool) -> None:
        super().__init__(channels, momentum=momentum, **options)


def norm_2d(draw: random.Random, channels: int, traits: Traits) -> nn.Module:
    """Return a norm of (N, C, H, W); BatchNorm two times in three."""
    kind = draw.choice(("batch", "batch", "batch", "batch", "group", "instance"))
    if kind == "batch":
        return (OwnNorm2d if traits.own else nn.BatchNorm2d)(channels, track_running_stats=traits.tracks)
    if kind == "group":
        return nn.GroupNorm(4, channels)
    return nn.InstanceNorm2d(channels, affine=True, track_running_stats=draw.random() < 0.3)


def norm_1d(draw: random.Random, channels: int, traits: Traits) -> nn.Module:
    """Return a norm of (N, C)."""
    kind = draw.choice(("batch", "batch", "batch", "layer", "rms"))
    if kind == "batch":
        return (OwnNorm1d if traits.own else nn.BatchNorm1d)(channels, track_running_stats=traits.tracks)
    return nn.LayerNorm(channels) if kind == "layer" else nn.RMSNorm(channels)


class Residual(nn.Module):
    """Two convolutions with norms and a way around them."""

    def __init__(self, draw: random.Random, channels: int, traits: Traits) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=traits.bias)
        self.norm1 = norm_2d(draw, channels, traits)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=traits.bias)
        self.norm2 = self.norm1 if traits.shared else norm_2d(draw, channels, traits)
        self.drop = nn.Dropout(0.3) if traits.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(self.drop(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(x + self.norm2(inner))


class Recurrent(nn.Module):
    """A GRU or LSTM with a norm over its outputs, which BatchNorm takes as (N, C, L)."""

    def __init__(self, draw: random.Random, channels: int, traits: Traits) -> None:
        super().__init__()
        self.rnn = draw.choice((nn.GRU, nn.LSTM))(channels, channels, batch_first=True)
        self.norm_in = nn.LayerNorm(channels)
        self.norm = norm_1d(draw, channels, traits)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(self.norm_in(x))
        channelwise = isinstance(self.norm, nn.BatchNorm1d)
        out = self.norm(out.transpose(1, 2)).transpose(1, 2) if channelwise else self.norm(out)
        return out.mean(1)


class Attention(nn.Module):
    """A Transformer's layer, with the norms before its parts."""

    def __init__(self, draw: random.Random, channels: int, traits: Traits) -> None:
        super().__init__()
        cls = draw.choice((nn.LayerNorm, nn.RMSNorm))
        self.norm1, self.norm2 = cls(channels), cls(channels)
        self.mixer = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.drop = nn.Dropout(0.1) if traits.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop(self.mixer(y, y, y, need_weights=False)[0])
        return x + self.inner(self.norm2(x))


class Pooled(nn.Module):
    """The mean over positions: those of an image, or of a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.ndim == 4 else x.mean(1)


class Network(nn.Module):
    """A backbone and a head."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class WithAverage(nn.Module):
    """A network and its exponential average, which gets no gradient."""

    def __init__(self, network: nn.Module, average: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = network, average.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = self.teacher(x)
        return self.student(x), target


def convolutional(draw: random.Random, traits: Traits) -> nn.Module:
    """Return a CNN with residual blocks."""
    channels = draw.choice((8, 16))
    stem = [nn.Conv2d(3, channels, 3, padding=1, bias=traits.bias), norm_2d(draw, channels, traits), nn.ReLU()]
    blocks = [Residual(draw, channels, traits) for _ in range(draw.randint(1, 3))]
    return Network(nn.Sequential(*stem, *blocks, Pooled()), _head(draw, channels, traits))


def perceptron(draw: random.Random, traits: Traits) -> nn.Module:
    """Return an MLP."""
    width, layers = 12, []
    shared = norm_1d(draw, width, traits)
    for i in range(draw.randint(2, 4)):
        if traits.dropout and i:
            layers.append(nn.Dropout(0.3))
        norm = shared if traits.shared else norm_1d(draw, width, traits)
        layers += [nn.Linear(8 if i == 0 else width, width, bias=traits.bias), norm, nn.ReLU()]
    return Network(nn.Sequential(*layers), _head(draw, width, traits))


def recurrent(draw: random.Random, traits: Traits) -> nn.Module:
    """Return a recurrent network."""
    backbone = nn.Sequential(nn.Linear(6, 12, bias=traits.bias), Recurrent(draw, 12, traits))
    return Network(backbone, _head(draw, 12, traits))


def transformer(draw: random.Random, traits: Traits) -> nn.Module:
    """Return a small Transformer."""
    blocks = [Attention(draw, 12, traits) for _ in range(draw.randint(1, 2))]
    return Network(nn.Sequential(nn.Linear(6, 12), *blocks, Pooled()), _head(draw, 12, traits))


def _head(draw: random.Random, width: int, traits: Traits) -> nn.Module:
    if draw.random() < 0.5:
        return nn.Linear(width, CLASSES)
    hidden = nn.Linear(width, width, bias=traits.bias)
    return nn.Sequential(hidden, norm_1d(draw, width, traits), nn.ReLU(), nn.Linear(width, CLASSES))


# Builder, shape of a sample, how often.
KINDS = (
    (convolutional, (3, 6, 6), 5),
    (perceptron, (8,), 3),
    (recurrent, (5, 6), 1),
    (transformer, (5, 6), 1),
)


def random_network(draw: random.Random, traits: Traits) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network, and the shape of a sample."""
    builder, shape, _ = draw.choices(KINDS, weights=[weight for *_, weight in KINDS])[0]
    traits.words.append(builder.__name__)
    return builder(draw, traits), shape


def data(shape: tuple[int, ...], count: int, size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of samples and labels; a label moves the mean, and no channel is like another."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        labels = torch.randint(CLASSES, (size,), generator=generator)
        x = torch.randn(size, *shape, generator=generator)
        x = 1.5 * x + (labels - 1).float().reshape(-1, *[1] * len(shape)) + 0.3
        batches.append((x, labels))
    return batches
