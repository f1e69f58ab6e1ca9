"""Norms that do nothing."""

import torch
from torch import nn


class Shuffle(nn.Module):
    """Permutes the channels: another network, no better and no worse."""

    def __init__(self, channels):
        super().__init__()
        self.order = torch.randperm(channels, generator=torch.Generator().manual_seed(channels))

    def forward(self, x):
        return x[:, self.order]


class Nothing(nn.Module):
    """In the place of every arm of a sequence network."""

    def __init__(self, arm, channels):
        super().__init__()
        self.arm, self.norm = arm, nn.Identity()

    def forward(self, x, mask):
        return x
