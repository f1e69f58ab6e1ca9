"""Networks initialized by families of rules, several at once."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.lab.images import stacked
from gammabeta.lab.images.layers import is_layer, weight_of
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.stacked import results, train_together
from gammabeta.lab.images.task import Task

joinable = stacked.joinable


def _fans(weight: Tensor) -> tuple[int, int]:
    """Return fan in and fan out: connections of a unit to the layer before and after."""
    positions = weight[0, 0].numel()
    return weight.shape[1] * positions, weight.shape[0] * positions


def _he(weight: Tensor, generator: torch.Generator) -> None:
    weight.normal_(0.0, math.sqrt(2 / _fans(weight)[0]), generator=generator)


def _xavier(weight: Tensor, generator: torch.Generator) -> None:
    weight.normal_(0.0, math.sqrt(2 / sum(_fans(weight))), generator=generator)


def _torchs(weight: Tensor, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(_fans(weight)[0])
    weight.uniform_(-bound, bound, generator=generator)


def _orthogonal(weight: Tensor, generator: torch.Generator) -> None:
    nn.init.orthogonal_(weight, generator=generator)


def _small(weight: Tensor, generator: torch.Generator) -> None:
    weight.normal_(0.0, 0.01, generator=generator)


def _uniform(weight: Tensor, generator: torch.Generator) -> None:
    weight.uniform_(-0.3, 0.3, generator=generator)


FAMILIES: dict[str, Callable[[Tensor, torch.Generator], None]] = {
    "He": _he,
    "Xavier": _xavier,
    "torch's default": _torchs,
    "orthogonal": _orthogonal,
    "N(0, 0.01)": _small,
    "uniform ±0.3": _uniform,
}


@torch.no_grad()
def initialize_by(model: nn.Module, family: str, seed: int) -> None:
    """Draw all weights but the last layer's by a family's rule, in the order of the modules; biases are 0.

    Args:
        family: one of ``FAMILIES``: He's normal (variance 2/fan in), Xavier's normal (2/(fan in + fan out)), torch's
            default (uniform within ±1/√(fan in)), orthogonal (gain 1), normal with standard deviation 0.01, uniform
            within ±0.3.

    Source: He et al. 2015; Glorot & Bengio 2010; Saxe et al. 2014 for orthogonal weights.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [module for module in model.modules() if is_layer(module)]
    for layer in layers[:-1]:
        FAMILIES[family](weight_of(layer), generator)
        if isinstance(layer.bias, Tensor):
            layer.bias.zero_()


def initialized(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run trials of ``claims.init_families:initialized`` that differ only in ``rate``, ``seed`` and split."""
    return stacked.one_by_one(_initialized, several)


def _make(task: Task, settings: Mapping[str, Any]) -> nn.Module:
    model = build(task, settings["network"], settings["norm"], settings["seed"])
    initialize_by(model, settings["family"], settings["seed"])
    return model


def _initialized(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return results(train_together(several, make=_make), several[0]["report"])
