"""Residual networks of any depth, with a norm or with an initialization that takes a norm's place."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gammabeta.lab.images.layers import weight_of
from gammabeta.lab.norms import norm

Start = Literal["he", "skipinit", "fixup"]


class Multiplier(nn.Module):
    """α·x with one trainable α for all channels; stacked networks have one α for each member's part of the channels."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), value))

    def forward(self, x: Tensor) -> Tensor:
        return (_parts(x, self.weight) * _shaped(self.weight, x)).flatten(1, 2)


class Offset(nn.Module):
    """x + b with one trainable b for all channels; stacked networks have one b for each member's part of them."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return (_parts(x, self.bias) + _shaped(self.bias, x)).flatten(1, 2)


def _parts(x: Tensor, scalar_s: Tensor) -> Tensor:
    """Return (N, S·C, …) as (N, S, C, …)."""
    parts: Tensor = x.unflatten(1, (len(scalar_s), -1))
    return parts


def _shaped(scalar_s: Tensor, x: Tensor) -> Tensor:
    return scalar_s.reshape(1, -1, *(1,) * (x.dim() - 1))


class ResidualBlock(nn.Module):
    """x + f(x), where f is twice (norm, relu, layer): the pre-activation form (He 2016).

    With ``start="skipinit"`` f ends in a multiplier that is 0 at first. With ``"fixup"`` each layer and each relu has a
    scalar offset before it, and f ends in a multiplier that is 1 at first and a scalar offset.
    """

    def __init__(self, width: int, norm_name: str, start: Start, *, convolutional: bool) -> None:
        super().__init__()
        positions = 2 if convolutional else 0

        def layer() -> nn.Module:
            return nn.Conv2d(width, width, 3, 1, 1) if convolutional else nn.Linear(width, width)

        def offset() -> nn.Module:
            return Offset() if start == "fixup" else nn.Identity()

        self.norm1, self.norm2 = norm(norm_name, width, positions), norm(norm_name, width, positions)
        self.layer1, self.layer2 = layer(), layer()
        self.before1, self.before2, self.inner1, self.inner2, self.after = (offset() for _ in range(5))
        ends = {"he": nn.Identity(), "skipinit": Multiplier(0.0), "fixup": Multiplier(1.0)}
        self.multiplier = ends[start]

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer1(self.inner1(functional.relu(self.before1(self.norm1(x)))))
        h = self.layer2(self.inner2(functional.relu(self.before2(self.norm2(h)))))
        y: Tensor = x + self.after(self.multiplier(h))
        return y


class ResidualNet(nn.Module):
    """A layer, ``depth`` residual blocks of one width, relu, and a linear classifier.

    Layers are linear, or 3 × 3 convolutions whose output is averaged over positions before the classifier. The first
    convolution halves images above 16 pixels.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        depth: int,
        width: int,
        norm_name: str,
        start: Start,
        convolutional: bool,
    ) -> None:
        super().__init__()
        self.convolutional = convolutional
        if convolutional:
            self.stem: nn.Module = nn.Conv2d(shape[0], width, 3, 2 if max(shape[1:]) > 16 else 1, 1)
        else:
            self.stem = nn.Linear(math.prod(shape), width)
        self.blocks = nn.Sequential(
            *(ResidualBlock(width, norm_name, start, convolutional=convolutional) for _ in range(depth))
        )
        self.norm = norm(norm_name, width, 2 if convolutional else 0)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(self.stem(x if self.convolutional else x.flatten(1)))
        h = functional.relu(self.norm(h))
        scores: Tensor = self.classifier(h.mean(dim=(2, 3)) if self.convolutional else h)
        return scores


@torch.no_grad()
def fixup(model: ResidualNet) -> None:
    """Apply Fixup to He's initialization: of each block's two layers the first is divided by √depth, the second is 0.

    The classifier is 0 too.

    Source: Zhang, Dauphin & Ma 2019, section 3, with m = 2 layers in a block: a factor of L^(−1/(2m − 2)).
    """
    for block in model.blocks:
        assert isinstance(block, ResidualBlock)
        weight_of(block.layer1).div_(math.sqrt(len(model.blocks)))
        weight_of(block.layer2).zero_()
    model.classifier.weight.zero_()
