"""How a batch goes through a model, for the kinds of batches that most loaders give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Any]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model without DistributedDataParallel or DataParallel.

    The forward of the first has collectives of its own; the second runs copies of the model.
    """
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        inner: nn.Module = model.module
        return inner
    return model


def forward_batch(operation: str) -> Forward:
    """Return a forward of batches as `input_of` takes them; a mapping becomes keyword arguments.

    Tensors are moved to the device of the model's first Parameter. Any other batch raises a TypeError with the
    operation's name.
    """

    def forward(model: nn.Module, batch: Any) -> Any:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        given = input_of(batch, operation, "say how it goes through the model by forward=lambda model, batch: ….")
        if isinstance(given, Mapping):
            return model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items()})
        return model(given.to(device))

    return forward


def input_of(batch: Any, operation: str, remedy: str) -> Tensor | Mapping[str, Any]:
    """Return the part of a batch that goes into a model: a tensor, or keyword arguments.

    Args:
        batch: a tensor, a mapping of keyword arguments, or a tuple or list whose first item is one of them.
        operation: the operation's name, for the message.
        remedy: what to do with other batches, for the message.

    Raises:
        TypeError: the batch is none of these.
    """
    given = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(given, (Tensor, Mapping)):
        raise TypeError(
            f"{operation}: expected batches of tensors, of tuples that begin with one, or of mappings, got "
            f"{type(batch).__name__}: {remedy}"
        )
    return given
