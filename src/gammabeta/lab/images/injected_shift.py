"""Shift as a cause: noise that moves the distribution after every BatchNorm anew at each step.

If shifting distributions are what makes training slow, a network with BatchNorm whose outputs shift more than those of
a network without norms should train no faster than that one.

Source: Santurkar et al. 2018, How Does Batch Normalization Help Optimization? (1805.11604), section 2.2, appendix A.1.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.lab.images.networks import build
from gammabeta.lab.images.task import Task
from gammabeta.lab.images.training import POPULATION, Training, crossing, error_and_loss, exact_statistics, fit
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import versioned

# A step's mean is drawn within ±1, its scale from 1 to 1.25; samples differ from both by 0.1. Santurkar et al. draw
# means within ±0.5, which here is less than what batches of 32 and learning move means by without normalization.
MEAN, SCALE, SAMPLES = 1.0, 1.25, 0.1


def shifted(y: Tensor, generator: torch.Generator) -> Tensor:
    """Return s·y + m for y (N, C) or (N, C, …): each channel has a mean and scale of this step, each sample its own.

    A channel's m is drawn uniformly within 0.1 of a mean drawn from [−1, 1], s from a normal distribution with
    standard deviation 0.1 around a scale drawn from [1, 1.25].
    """
    n, channels = y.shape[:2]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    means, scales = MEAN * (2 * uniform(channels) - 1), 1 + (SCALE - 1) * uniform(channels)
    m = means + SAMPLES * (2 * uniform(n, channels) - 1)
    s = scales + SAMPLES * torch.randn(n, channels, generator=generator)
    shape = (n, channels, *(1,) * (y.dim() - 2))
    return s.reshape(shape) * y + m.reshape(shape)


def places(task: Task, network: Mapping[str, Any]) -> list[str]:
    """Return the names of the network's BatchNorms; without norms, other modules have these names."""
    model = build(task, network, "batch", 0)
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class Moments:
    """How far the means of a place's output move from step to step, in standard deviations of the earlier batch."""

    def __init__(self) -> None:
        self.last: dict[str, Tensor] = {}
        self.moved: list[float] = []

    def look(self, name: str, y: Tensor) -> None:
        """Compare a batch (N, C) or (N, C, …) with the one before it at the same place."""
        axes = [axis for axis in range(y.dim()) if axis != 1]
        now = y.detach().mean(dim=axes)
        if name in self.last:
            std = y.detach().std(dim=axes, correction=0).clamp_min(1e-6)
            self.moved.append(float(((now - self.last[name]) / std).square().mean().sqrt()))
        self.last[name] = now


def hooks_on(model: nn.Module, names: Sequence[str], inject: bool, seed: int) -> Moments:
    """Measure how far outputs at these places move in training, and with ``inject`` move them."""
    moments, generator = Moments(), torch.Generator().manual_seed(seed)

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def after(module: nn.Module, given: Any, y: Tensor) -> Tensor:
            if not module.training:
                return y
            out = shifted(y, generator) if inject else y
            moments.look(name, out)
            return out

        return after

    for name in names:
        model.get_submodule(name).register_forward_hook(hook(name))
    return moments


@versioned(1)
def race(
    *, task: Mapping[str, Any], network: Mapping[str, Any], norm: str, inject: bool, rate: float, batch_size: int,
    limit: int, every: int, target: float, seed: int,
) -> dict[str, float | None]:  # fmt: skip
    """Train until the validation accuracy reaches the target; noise is injected in training only.

    Returns:
        A dict with ``steps``, interpolated, None where the limit came first; ``error``, the validation error at the
        last look; and ``moved``, the mean over places and steps of how far outputs move, None without any place.
    """
    data = load(task)
    names = places(data, network)
    looks: list[tuple[int, float]] = []
    moments = Moments()

    def look(step: int, model: nn.Module) -> bool:
        nonlocal moments
        if step == 0:
            moments = hooks_on(model, names, inject, seed)
        if step % every:
            return False
        with exact_statistics(model, data.train.x_nchw[:POPULATION]):
            looks.append((step, 1.0 - error_and_loss(model, data.validation)[0]))
        return looks[-1][1] >= target

    training = Training(network=network, norm=norm, rate=rate, batch_size=batch_size, steps=limit, seed=seed)
    lost = fit(data, data.train, training, look).diverged is not None
    reached = not lost and looks[-1][1] >= target
    steps = None
    if reached:
        steps = crossing(looks[-2], looks[-1], target) if len(looks) > 1 else 1.0
    return {
        "steps": steps,
        "error": 1.0 if lost else 1.0 - looks[-1][1],
        "moved": mean(moments.moved) if moments.moved else None,
    }
