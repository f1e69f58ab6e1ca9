"""A small U-Net as diffusion models train it: residual blocks of GroupNorm, SiLU and convolutions, told the time.

    h = conv(silu(norm(x)));  h = h + linear(silu(time));  y = conv(silu(norm(h))) + shortcut(x)

Resolutions are halved by a strided convolution and doubled by nearest neighbours and a convolution. What goes down is
concatenated to what comes up. The middle has one block of self-attention over the positions.

Source: Ho et al. 2020 (2006.11239), Appendix B, with fewer blocks and channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
TIMES = 1000  # steps of the diffusion


class Block(nn.Module):
    """A residual block, told the time."""

    def __init__(self, channels: int, out: int, time: int) -> None:
        super().__init__()
        self.norm1, self.act1 = nn.GroupNorm(GROUPS, channels), nn.SiLU()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time, out))
        self.norm2, self.act2 = nn.GroupNorm(GROUPS, out), nn.SiLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h: Tensor = self.conv1(self.act1(self.norm1(x)))
        h = h + self.time(time)[:, :, None, None]
        y: Tensor = self.conv2(self.act2(self.norm2(h)))
        shortcut: Tensor = self.shortcut(x)
        return y + shortcut


class Attention(nn.Module):
    """Self-attention over the positions, one head, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        out: Tensor = self.out(mixed)
        return x + out


class UNet(nn.Module):
    """The network: from noisy images and their times to the noise.

    Args:
        channels: of the images.
        width: channels at the highest resolution, a multiple of 32.
        factors: channels of each resolution, in units of `width`.
    """

    def __init__(self, channels: int = 3, width: int = 64, factors: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        time, widths = 4 * width, [width * factor for factor in factors]
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.smaller = nn.ModuleList(), nn.ModuleList()
        for before, now in zip([width, *widths], widths, strict=False):
            self.down.append(Block(before, now, time))
            self.smaller.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
        last = widths[-1]
        self.middle = nn.ModuleList([Block(last, last, time), Block(last, last, time)])
        self.attention = Attention(last)
        self.larger, self.up = nn.ModuleList(), nn.ModuleList()
        for below, now in zip([last, *reversed(widths)], reversed(widths), strict=False):
            self.larger.append(nn.Conv2d(below, now, 3, padding=1))
            self.up.append(Block(2 * now, now, time))
        self.norm, self.act = nn.GroupNorm(GROUPS, width), nn.SiLU()
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """Return the noise in x.

        Args:
            x: images, (N, channels, height, width); the sides are multiples of 2 to the number of resolutions.
            step: of the diffusion, (N,), from 0 to `TIMES`.
        """
        time = self.time(waves(step, self.width).to(self.first.weight.dtype))
        h, kept = self.first(x), []
        for block, smaller in zip(self.down, self.smaller, strict=True):
            h = block(h, time)
            kept.append(h)
            h = smaller(h)
        h = self.attention(self.middle[0](h, time))
        h = self.middle[1](h, time)
        for larger, block in zip(self.larger, self.up, strict=True):
            h = larger(F.interpolate(h, scale_factor=2.0, mode="nearest"))
            h = block(torch.cat([h, kept.pop()], dim=1), time)
        y: Tensor = self.last(self.act(self.norm(h)))
        return y


def waves(step: Tensor, size: int) -> Tensor:
    """Return sines and cosines of the step at `size`/2 frequencies, (N, size)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(size // 2, device=step.device) / (size // 2))
    angles = step.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
