"""A small Vision Transformer: patches as tokens, with the arm's norm before attention and before the MLP."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.norms import norm

WIDTH, HEADS, DEPTH = 32, 4, 2
PATCHES = 4  # along each side of the image; fewer pixels than that make as many patches


class TokenNorm(nn.Module):
    """An arm's norm of tokens (N, C, H, W): LayerNorm at each position, any other as of feature maps."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.last = name == "layer"
        self.norm = gb.LayerNorm(width) if self.last else norm(name, width)

    def forward(self, x_nchw: Tensor) -> Tensor:
        y: Tensor = self.norm(x_nchw.movedim(1, -1)).movedim(-1, 1) if self.last else self.norm(x_nchw)
        return y


class Encoder(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) with gelu and four times the width, on tokens (N, C, H, W)."""

    def __init__(self, norm_name: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = TokenNorm(norm_name, WIDTH), TokenNorm(norm_name, WIDTH)
        self.to_qkv, self.project = nn.Conv2d(WIDTH, 3 * WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.widen, self.narrow = nn.Conv2d(WIDTH, 4 * WIDTH, 1), nn.Conv2d(4 * WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.project(self._attend(self.to_qkv(self.norm1(x))))
        return x + cast(Tensor, self.narrow(functional.gelu(self.widen(self.norm2(x)))))

    def _attend(self, qkv_nchw: Tensor) -> Tensor:
        # (N, 3·heads·width of a head, H, W) to three of (N, heads, H·W, width of a head)
        parts = qkv_nchw.flatten(2).unflatten(1, (3, HEADS, -1)).transpose(3, 4)
        query, key, value = parts.unbind(1)
        found = functional.scaled_dot_product_attention(query, key, value)
        return found.transpose(2, 3).flatten(1, 2).reshape(len(qkv_nchw), WIDTH, *qkv_nchw.shape[2:])


class ViT(nn.Module):
    """Patches of the image, trainable positions, two encoders of width 32 with 4 heads, norm, mean, classifier.

    There are 4 × 4 patches, or slightly more where the sides do not divide; the image is padded with zeros then.

    Source: Dosovitskiy et al. 2020, An Image is Worth 16 × 16 Words (2010.11929), section 3.1, with the mean over
    tokens in place of the class token.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, norm_name: str) -> None:
        super().__init__()
        channels, height, width = shape
        size = max(1, min(height, width) // PATCHES)
        self.padding = (0, -width % size, 0, -height % size)
        self.embed = nn.Conv2d(channels, WIDTH, size, size)
        self.positions = nn.Parameter(torch.zeros(1, WIDTH, math.ceil(height / size), math.ceil(width / size)))
        self.encoders = nn.Sequential(*(Encoder(norm_name) for _ in range(DEPTH)))
        self.norm = TokenNorm(norm_name, WIDTH)
        self.classifier = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(functional.pad(x, self.padding)) + self.positions
        scores: Tensor = self.classifier(self.norm(self.encoders(tokens)).mean(dim=(2, 3)))
        return scores


@torch.no_grad()
def initialize(model: ViT, generator: torch.Generator) -> None:
    """Draw all weights from N(0, 1/fan_in), positions with a standard deviation of 0.02; biases are 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.normal_(0.0, math.sqrt(1 / module.weight[0].numel()), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    model.positions.normal_(0.0, 0.02, generator=generator)
