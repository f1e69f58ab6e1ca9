"""A small convolutional network with Dropout where such networks have it, to measure what Dropout gains."""

import math

import torch
from torch import Tensor, nn

from gammabeta.lab.images.networks import Dropout, initialize
from gammabeta.lab.images.task import Task
from gammabeta.lab.norms import norm

CHANNELS, HIDDEN = (8, 16), 128


class ConvNet(nn.Module):
    """Two 3 × 3 convolutions of stride 2, a hidden linear layer, each with norm and relu, and a classifier.

    Dropout stands before both linear layers, as in VGG. The norm after the hidden one sees a variance that it changes.
    """

    def __init__(self, task: Task, norm_name: str, dropout: float, seed: int) -> None:
        super().__init__()
        first, second = CHANNELS
        _, height, width = task.shape
        flat = second * math.ceil(math.ceil(height / 2) / 2) * math.ceil(math.ceil(width / 2) / 2)

        def drop(index: int) -> list[nn.Module]:
            return [Dropout(dropout, [1000 * seed + index])] if dropout else []

        self.features = nn.Sequential(
            nn.Conv2d(task.shape[0], first, 3, 2, 1),
            norm(norm_name, first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, 2, 1),
            norm(norm_name, second),
            nn.ReLU(),
        )
        self.hidden = nn.Sequential(*drop(1), nn.Linear(flat, HIDDEN), norm(norm_name, HIDDEN, 0), nn.ReLU())
        self.head = nn.Sequential(*drop(2), nn.Linear(HIDDEN, task.classes))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.hidden(self.features(x).flatten(1)))
        return scores


def build_conv_net(task: Task, norm_name: str, dropout: float, seed: int) -> nn.Module:
    """Build the network, initialized by He's rule and by ``seed`` the same for every norm."""
    model = ConvNet(task, norm_name, dropout, seed)
    initialize(model, "relu", torch.Generator().manual_seed(seed))
    return model
