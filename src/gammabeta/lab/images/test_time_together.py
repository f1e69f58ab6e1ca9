"""Trained networks evaluated with statistics of test batches, several at once."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.activations import activate
from gammabeta.lab.images import stacked
from gammabeta.lab.images.corruption import CORRUPTIONS, corrupted
from gammabeta.lab.images.descent import judged
from gammabeta.lab.images.stacked import train_together
from gammabeta.lab.images.task import Split

joinable = stacked.joinable
SIZES = (1, 4, 16, 64)
# Running statistics count as this many images where they are mixed with a batch's.
PRIOR = 16
CONDITIONS = ("clean", *CORRUPTIONS)


@contextlib.contextmanager
def batch_statistics(model: nn.Module, size: int, prior: float) -> Iterator[None]:
    """Normalize each ``size`` images in evaluation by statistics of their own, mixed with the running ones.

    With n = ``size`` and N = ``prior``, mean and variance are (N·running + n·batch)/(N + n). The batch's variance
    divides by the count. The number of images must be a multiple of ``size``.

    Source: Schneider et al. 2020, eq. 3.
    """

    def normalize(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].unflatten(0, (-1, size))  # (batches, n, C, …)
        axes = [axis for axis in range(1, x.dim()) if axis != 2]
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        shape = (1, 1, -1, *(1,) * (x.dim() - 3))
        weight = size / (prior + size)
        mean = torch.lerp(layer.running_mean.reshape(shape), mean, weight)
        variance = torch.lerp(layer.running_var.reshape(shape), variance, weight)
        y = ((x - mean) / (variance + layer.eps).sqrt()).flatten(0, 1)
        shape = (1, -1, *(1,) * (y.dim() - 2))
        if layer.weight is not None:
            y = y * layer.weight.reshape(shape) + layer.bias.reshape(shape)
        activation = getattr(layer, "activation", None)
        return y if activation is None else activate(y, activation, layer.activation_slope)

    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [layer.register_forward_hook(normalize) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def tested(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run trials of ``claims.test_time_statistics:tested`` that differ only in ``rate``, ``seed`` and split."""
    return stacked.one_by_one(_tested, several)


def _tested(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    trained = train_together(several)
    largest = max(SIZES)
    found: list[dict[str, dict[str, float]]] = [{} for _ in several]
    for condition in CONDITIONS:
        splits = []
        for task, settings in zip(trained.tasks, several, strict=True):
            # In an order of no meaning, so that batches are drawn from all classes alike.
            order = torch.randperm(len(task.test), generator=torch.Generator().manual_seed(settings["seed"]))
            index = order[: len(order) // largest * largest]
            x, y = task.test.x_nchw[index], task.test.y_n[index]
            splits.append(Split(x if condition == "clean" else corrupted(x, condition, settings["seed"]), y))
        by = {"running": [one.error for one in judged(trained.model, splits)]}
        for size in SIZES:
            for name, prior in (("batch", 0.0), ("mixed", float(PRIOR))):
                with batch_statistics(trained.model, size, prior), torch.no_grad():
                    by[f"{name} {size}"] = [one.error for one in judged(trained.model, splits)]
        for member, errors in enumerate(found):
            good = trained.finite[member]
            errors[condition] = {name: of[member] if good else 1.0 for name, of in by.items()}
    return [{"errors": errors} for errors in found]
