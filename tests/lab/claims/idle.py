"""Norms that do nothing: each permutes the channels, by its name, so that arms are networks no better and no worse."""

import zlib

import torch
from torch import nn


def order_of(name, channels):
    return torch.randperm(channels, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()) + channels))


class Shuffle(nn.Module):
    """A replacement for a norm of (N, C) or (N, C, H, W)."""

    def __init__(self, channels, name="", order=None):
        super().__init__()
        self.order = order_of(name, channels) if order is None else order

    def forward(self, x):
        return x[:, self.order]

    @classmethod
    def joined(cls, several):
        """Join those of networks that train together, each on its own channels."""
        orders = [one.order + place * len(one.order) for place, one in enumerate(several)]
        return cls(0, order=torch.cat(orders))


class ShuffledLast(nn.Module):
    """A replacement for a norm of a sequence network, which is called with a mask; the identity for the arm "none"."""

    def __init__(self, arm, channels):
        super().__init__()
        self.arm, self.norm = arm, nn.Identity()
        self.order = torch.arange(channels) if arm == "none" else order_of(arm, channels)

    def forward(self, x, mask):
        return x[..., self.order]

    @classmethod
    def joined(cls, several):
        """Join those of networks that train together: all have one order."""
        return several[0]


def put_idle(monkeypatch):
    """Make every norm of the study do nothing; networks still train together."""
    from gammabeta.lab.images import dropout_net, networks, together
    from gammabeta.lab.sequences import networks as sequence_networks
    from gammabeta.lab.sequences import stacked

    for module in (networks, dropout_net):
        monkeypatch.setattr(
            module, "norm", lambda name, channels, *_: nn.Identity() if name == "none" else Shuffle(channels, name)
        )
    monkeypatch.setattr(sequence_networks, "SequenceNorm", ShuffledLast)
    of_sequences = stacked._joined
    monkeypatch.setattr(
        stacked, "_joined", lambda some: ShuffledLast.joined(some) if isinstance(some[0], ShuffledLast)
        else of_sequences(some)
    )  # fmt: skip
    whole = together._joined
    monkeypatch.setattr(
        together, "_joined", lambda some: Shuffle.joined(some) if isinstance(some[0], Shuffle) else whole(some)
    )
