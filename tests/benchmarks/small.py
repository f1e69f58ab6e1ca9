"""Small networks for the tests of what is measured on networks."""

import torch
import torch.nn.functional as F
from torch import nn

from gammabeta.benchmarks.networks import Batch, Network

SHAPE, CLASSES = (7, 6, 8, 8), 5


class BatchNormAct2d(nn.BatchNorm2d):
    """A copy of timm's class: a norm that applies its activation itself."""

    def __init__(self, channels, act):
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = act

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def randomized(model):
    """Set the affine parameters of its norms to random values."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def convolutional(*blocks):
    """Return a function that builds a network of a convolution before each of these, then a classifier."""

    def build():
        torch.manual_seed(3)
        layers = [layer for block in blocks for layer in (nn.Conv2d(6, 6, 3, padding=1), *block())]
        return randomized(nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 64, CLASSES)))

    return build


def with_activations():
    """Norms with their activation inside, as timm's."""
    return convolutional(
        lambda: [BatchNormAct2d(6, nn.ReLU6(inplace=True))], lambda: [BatchNormAct2d(6, nn.SiLU())],
        lambda: [nn.BatchNorm2d(6)],
    )  # fmt: skip


def with_modules():
    """Norms whose activation is a module that follows, as torchvision's."""
    return convolutional(lambda: [nn.BatchNorm2d(6), nn.ReLU()], lambda: [nn.GroupNorm(2, 6), nn.SiLU()])


def network(build=None, **options):
    """Return it as a network of the benchmarks."""

    def draw(generator):
        return Batch((torch.randn(SHAPE, generator=generator),), torch.randint(CLASSES, SHAPE[:1], generator=generator))

    def call(model, inputs):
        return model(*inputs)

    return Network("small", SHAPE, build or with_modules(), draw, call, F.cross_entropy, library="", **options)
