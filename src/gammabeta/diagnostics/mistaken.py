"""What was passed as a batch and gives batches, or as a loader and is one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from gammabeta.introspection.forward import BatchError, Forward, arguments_of

# So many items of one shape, where the forward takes fewer, are batches and not a batch with targets or further views.
_SEVERAL = 4


def why_no_batch(model: nn.Module, inputs: Any, forward: Forward | None, option: str) -> str | None:
    """Return what inputs are, in words, and what takes them, if they give batches instead of being one; None if not.

    Args:
        model: the model.
        inputs: what was passed as a batch.
        forward: the user's function; it takes anything.
        option: what takes a loader: "loader=".
    """
    if forward is not None:
        return None
    if isinstance(inputs, Dataset):
        return f"a {type(inputs).__qualname__}, which gives samples: {option} takes a DataLoader of it"
    if isinstance(inputs, DataLoader | Iterator):
        return f"a {type(inputs).__qualname__}, which gives batches: {option} takes it, and the inputs come from there"
    if isinstance(inputs, list | tuple) and _is_list_of_batches(model, inputs):
        return (
            f"a {type(inputs).__qualname__} of {len(inputs)} batches: {option} takes it, and the inputs come from there"
        )
    return None


def why_no_loader(loader: Any, option: str) -> str | None:
    """Return what a loader is, in words, and what takes it, if it gives no batches; None if it does.

    Args:
        loader: what was passed as a loader.
        option: what takes a batch: "inputs=".
    """
    name = type(loader).__qualname__
    if isinstance(loader, Tensor):
        return f"a tensor of shape {tuple(loader.shape)}, which is one batch: {option} takes it"
    if isinstance(loader, Mapping):
        return f"a {name} of {', '.join(map(str, loader))}, which is one batch: {option} takes it"
    if isinstance(loader, list | tuple) and _is_pair(loader):
        return f"a {name} of inputs and targets, which is one batch: {option} takes it"
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        return f"a {name}, which gives samples: pass a DataLoader of it"
    if isinstance(loader, str | bytes) or not (isinstance(loader, Iterable) or hasattr(loader, "__getitem__")):
        return f"a {name}, which gives none: pass a DataLoader, or a list of batches"
    return None


def _is_pair(items: Sequence[Any]) -> bool:
    """Return whether items are (input, target), with one target per sample."""
    if len(items) != 2 or not all(isinstance(item, Tensor) for item in items):
        return False
    inputs, targets = items
    return bool(inputs.ndim > 1 and targets.ndim == 1 and len(inputs) == len(targets))


def _is_list_of_batches(model: nn.Module, items: Sequence[Any]) -> bool:
    """Return whether items are batches: all alike, and more than the forward takes."""
    shapes = [_shapes(item) for item in items]
    if len(items) < 2 or shapes[0] is None or any(_inner(each) != _inner(shapes[0]) for each in shapes[1:]):
        return False
    if isinstance(items[0], Tensor) and (items[0].ndim < 2 or (len(items) < _SEVERAL and len({*shapes}) == 1)):
        return False
    try:
        args, kwargs = arguments_of(model, items, "check")
    except BatchError:
        return True
    return bool(kwargs) or len(args) < len(items)


def _shapes(item: Any) -> tuple[tuple[int, ...], ...] | None:
    """Return the shapes of a batch's tensors; None where it holds none, or something else that has parts."""
    if isinstance(item, Tensor):
        return (tuple(item.shape),)
    parts = tuple(item.values()) if isinstance(item, Mapping) else item
    if not isinstance(parts, tuple | list) or not parts or not all(isinstance(part, Tensor) for part in parts):
        return None
    return tuple(tuple(part.shape) for part in parts)


def _inner(shapes: tuple[tuple[int, ...], ...] | None) -> Any:
    """Return shapes without their first axis, that of samples, which differs in the last batch."""
    return None if shapes is None else tuple(shape[1:] for shape in shapes)
