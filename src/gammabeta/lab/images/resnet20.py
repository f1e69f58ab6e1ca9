"""ResNet-20: the residual network with which BatchNorm's relatives are usually compared on CIFAR-10."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from gammabeta.lab.norms import norm

WIDTHS, BLOCKS = (16, 16, 32, 64), 3


class ResNet20Block(nn.Module):
    """Two 3 × 3 convolutions with a skip connection without parameters.

    Where the number of channels grows, the connection takes every second position and adds channels of zeros.

    Source: He et al. 2015 (1512.03385), section 4.2, option A.
    """

    def __init__(self, inputs: int, channels: int, norm_name: str) -> None:
        super().__init__()
        self.stride, self.added = (2, channels - inputs) if channels > inputs else (1, 0)
        self.conv1 = nn.Conv2d(inputs, channels, 3, self.stride, 1, bias=False)
        self.norm1 = norm(norm_name, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = norm(norm_name, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        if self.added:
            before = self.added // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))
        return functional.relu(h + x)


class ResNet20(nn.Module):
    """A 3 × 3 convolution, nine blocks with 16, 32 and 64 channels, the mean over positions, a linear classifier.

    Weights are in channels_last, which is faster on a CPU and changes no result but its last bits.

    Source: He et al. 2015 (1512.03385), section 4.2, n = 3.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, norm_name: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(shape[0], WIDTHS[0], 3, 1, 1, bias=False)
        self.norm = norm(norm_name, WIDTHS[0])
        blocks = []
        for inputs, channels in pairwise(WIDTHS):
            blocks += [
                ResNet20Block(inputs if place == 0 else channels, channels, norm_name) for place in range(BLOCKS)
            ]
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(WIDTHS[-1], classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm(self.stem(x)))
        scores: Tensor = self.classifier(self.blocks(h).mean(dim=(2, 3)))
        return scores
