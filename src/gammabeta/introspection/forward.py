"""How a batch goes through a model: by what most loaders give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Any]


def unwrapped(model: nn.Module) -> nn.Module:
    """Without DistributedDataParallel, whose forward has collectives of its own, or DataParallel's copies."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        inner: nn.Module = model.module
        return inner
    return model


def forward_batch(operation: str) -> Forward:
    """A forward of a tensor, of a tuple or list by its first item, or of a mapping as keyword arguments.

    Tensors are moved to the device of the model's first Parameter. What it makes of anything else is a TypeError, with
    the operation's name.
    """

    def forward(model: nn.Module, batch: Any) -> Any:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if isinstance(batch, Mapping):
            return model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})
        x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{operation}: expected batches of tensors, of tuples that begin with one, or of mappings, got "
                f"{type(batch).__name__}: say how it goes through the model by forward=lambda model, batch: …."
            )
        return model(x.to(device))

    return forward
