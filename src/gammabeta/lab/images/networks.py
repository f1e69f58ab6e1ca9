"""The networks that trials train: MLPs, small networks of several architectures, or the user's own model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gammabeta.lab.images import residual, user_network, vit
from gammabeta.lab.images.mobilenet import MobileNet
from gammabeta.lab.images.residual import ResidualNet
from gammabeta.lab.images.resnet20 import ResNet20
from gammabeta.lab.images.task import Task
from gammabeta.lab.images.vit import ViT
from gammabeta.lab.norms import norm
from gammabeta.target import short

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


# Where a hidden layer has its norm: the places among (layer, activation).
PLACEMENTS = ("input", "before", "after")


class Dropout(nn.Module):
    """Dropout with its own random generators, one for each member's part of the channels.

    Networks trained together therefore drop what each of them drops on its own. Of images (N, C, H, W) it drops whole
    channels, all positions together. Scales in training, by 1/(1 − rate).

    Source: Srivastava et al. 2014; Tompson et al. 2015 (arXiv 1411.4280) for channels.
    """

    def __init__(self, rate: float, seeds: Sequence[int]) -> None:
        super().__init__()
        self.rate, self.seeds = rate, tuple(seeds)
        self.generators: list[torch.Generator] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.generators = self.generators or [torch.Generator().manual_seed(seed) for seed in self.seeds]
        keep = x.new_empty(len(self.seeds), len(x), x.shape[1] // len(self.seeds))
        for part, generator in zip(keep, self.generators, strict=True):
            part.bernoulli_(1 - self.rate, generator=generator)
        keep_nc = keep.div_(1 - self.rate).transpose(0, 1).flatten(1)
        return x * keep_nc.reshape(*keep_nc.shape, *(1,) * (x.dim() - 2))


class MLP(nn.Module):
    """A multilayer perceptron: ``depth`` hidden layers of ``width``, then a linear classifier.

    A hidden layer is linear, norm, activation and, where ``dropout`` is positive, Dropout. ``dropout_at`` says where:
    after ``"every"`` hidden layer, so before each norm but the first, or after the ``"last"``, so after all norms.
    ``placement`` says where a hidden layer has its norm: ``"before"`` the activation, ``"after"`` it, or at the
    layer's ``"input"``.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        depth: int,
        width: int,
        activation: str,
        norm_name: str,
        dropout: float = 0.0,
        dropout_at: str = "every",
        placement: str = "before",
        seed: int = 0,
    ) -> None:
        super().__init__()
        place = PLACEMENTS.index(placement)
        layers: list[nn.Module] = []
        for index in range(depth):
            own = inputs if index == 0 else width
            hidden = [nn.Linear(own, width), ACTIVATIONS[activation]()]
            hidden.insert(place, norm(norm_name, own if placement == "input" else width, 0))
            layers += hidden
            if dropout and (dropout_at == "every" or index == depth - 1):
                layers.append(Dropout(dropout, [1000 * seed + index]))
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.hidden(x.flatten(1)))
        return scores


class Block(nn.Module):
    """Two 3 × 3 convolutions with a skip connection, which has a 1 × 1 convolution where shapes change (He 2015).

    ``placement`` says where each convolution has its norm: ``"before"`` the relu, ``"after"`` it, or at the
    convolution's ``"input"``. The second relu follows the addition.
    """

    def __init__(self, inputs: int, channels: int, stride: int, norm_name: str, placement: str = "before") -> None:
        super().__init__()
        self.placement = placement
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.norm1 = norm(norm_name, inputs if placement == "input" else channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = norm(norm_name, channels)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inputs, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.placement == "input":
            h = functional.relu(self.conv1(self.norm1(x)))
            return functional.relu(self.conv2(self.norm2(h)) + self.skip(x))
        if self.placement == "after":
            h = self.norm1(functional.relu(self.conv1(x)))
            y: Tensor = self.norm2(functional.relu(self.conv2(h) + self.skip(x)))
            return y
        h = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(h)) + self.skip(x))


class ResNet(nn.Module):
    """A small ResNet: five 3 × 3 convolutions with 12 and 24 channels; the first one halves images above 16 pixels."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        norm_name: str,
        width: int = 12,
        placement: str = "before",
    ) -> None:
        super().__init__()
        self.placement = placement
        stride = 2 if max(shape[1:]) > 16 else 1
        self.stem = nn.Conv2d(shape[0], width, 3, stride, 1, bias=False)
        self.norm = norm(norm_name, shape[0] if placement == "input" else width)
        self.blocks = nn.Sequential(
            Block(width, width, 1, norm_name, placement), Block(width, 2 * width, 2, norm_name, placement)
        )
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.placement == "input":
            h = functional.relu(self.stem(self.norm(x)))
        elif self.placement == "after":
            h = self.norm(functional.relu(self.stem(x)))
        else:
            h = functional.relu(self.norm(self.stem(x)))
        scores: Tensor = self.classifier(self.blocks(h).mean(dim=(2, 3)))
        return scores


def initialize(model: nn.Module, activation: str, generator: torch.Generator, gain: float = 1.0) -> None:
    """Initialize the weights by He's rule for relu and by Xavier's with a gain for tanh and sigmoid; biases are 0.

    The last linear layer has gain 1. All other weights are multiplied by ``gain``, which is 1 unless a claim is about
    it. Weights are drawn in the order of the modules, so that arms that differ only in their norms start from the same
    weights. Sigmoid's gain is 4, the inverse of its slope at 0. torch's calculate_gain returns 1, with which signals
    vanish.

    Source: Glorot & Bengio 2010, eq. 16; He 2015, eq. 10.
    """
    weighted = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for module in weighted:
        fan_in = module.weight[0].numel()
        fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
        if module is weighted[-1]:
            std = math.sqrt(1 / fan_in)
        elif activation == "relu":
            std = math.sqrt(2 / fan_in)
        else:
            std = {"tanh": 5 / 3, "sigmoid": 4.0}[activation] * math.sqrt(2 / (fan_in + fan_out))
        with torch.no_grad():
            module.weight.normal_(0.0, std if module is weighted[-1] else gain * std, generator=generator)
            if module.bias is not None:
                module.bias.zero_()


def build(task: Task, network: Mapping[str, Any], norm_name: str, seed: int) -> nn.Module:
    """Build the network that a trial's settings describe, initialized by ``seed`` the same for every norm.

    Args:
        network: ``{"kind": "mlp", "depth", "width", "activation", "init"}``; ``{"kind", "init"}`` of the kinds
            ``"resnet"``, ``"resnet20"``, ``"mobilenet"`` and ``"vit"``; ``{"kind": "residual", "depth", "width",
            "start", "convolutional"}``; or what :func:`gammabeta.lab.images.user_network.user_network` returned.
            ``init`` is ``"matched"`` (:func:`initialize`) or ``"default"`` (torch's). An MLP may also have ``"gain"``,
            ``"dropout"`` and ``"dropout_at"``, MLP and ResNet ``"placement"``. ``start`` is ``"he"``, ``"skipinit"`` or
            ``"fixup"`` (:mod:`gammabeta.lab.images.residual`).

    Raises:
        TaskError: a BatchNorm of the user's model cannot be replaced by the arm's norm.
        ValueError: an unknown kind of network.
    """
    torch.manual_seed(seed)
    kind, generator = network["kind"], torch.Generator().manual_seed(seed)
    if kind == "user":
        return user_network.build(network["model"], task, norm_name, seed)
    if kind == "residual":
        return _residual(task, network, norm_name, generator)
    if kind == "vit":
        transformer = ViT(task.shape, task.classes, norm_name=norm_name)
        if network["init"] == "matched":
            vit.initialize(transformer, generator)
        return transformer
    model: nn.Module
    if kind == "mobilenet":
        model = MobileNet(task.shape, task.classes, norm_name=norm_name)
    elif kind == "resnet20":
        model = ResNet20(task.shape, task.classes, norm_name=norm_name)
    elif kind == "resnet":
        placement = network.get("placement", "before")
        model = ResNet(task.shape, task.classes, norm_name=norm_name, placement=placement)
    elif kind == "mlp":
        model = MLP(
            math.prod(task.shape),
            task.classes,
            depth=network["depth"],
            width=network["width"],
            activation=network["activation"],
            norm_name=norm_name,
            dropout=network.get("dropout", 0.0),
            dropout_at=network.get("dropout_at", "every"),
            placement=network.get("placement", "before"),
            seed=seed,
        )
    else:
        raise ValueError(f"build: expected mlp, resnet, resnet20, mobilenet, vit, residual or user, got {kind}")
    if network["init"] == "matched":
        initialize(model, network.get("activation", "relu"), generator, network.get("gain", 1.0))
    return model


def _residual(task: Task, network: Mapping[str, Any], norm_name: str, generator: torch.Generator) -> ResidualNet:
    model = ResidualNet(
        task.shape,
        task.classes,
        depth=network["depth"],
        width=network["width"],
        norm_name=norm_name,
        start=network["start"],
        convolutional=network["convolutional"],
    )
    initialize(model, "relu", generator)
    if network["start"] == "fixup":
        residual.fixup(model)
    return model


STARTS = {"he": "", "skipinit": ", SkipInit", "fixup": ", Fixup"}
PLACED = {
    "before": "",
    "after": ", norms after the activations",
    "input": ", norms at the layers' inputs",
}


def describe(network: Mapping[str, Any]) -> str:
    """Return the network's name for sentences and legends."""
    kind = network["kind"]
    if kind == "user":
        return short(str(network["model"]))
    if kind == "residual":
        form = "residual conv net" if network["convolutional"] else "residual MLP"
        return f"{form} of {network['depth']} blocks{STARTS[network['start']]}"
    rest = PLACED[network.get("placement", "before")]
    rest += "" if network["init"] == "matched" else ", torch's default init"
    if kind == "mlp":
        return f"MLP {network['depth']} layers {network['activation']}{rest}"
    return {"resnet": "ResNet", "resnet20": "ResNet-20", "mobilenet": "MobileNet", "vit": "ViT"}[kind] + rest
