"""How a batch goes through a model: one meaning of a batch, for every operation that runs one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gammabeta._torch_private import tree_map


class BatchError(TypeError):
    """A batch that does not tell how it goes through the model."""


Forward = Callable[[nn.Module, Any], Any]

# Attributes under which wrappers keep the model whose arguments they pass on.
_WRAPPED = ("_orig_mod", "module", "base_model", "model")
# What a mapping may hold beside the model's arguments, and what optional parameters that take one value per sample
# are called. Any other optional parameter does not get the second item of (input, target).
_TARGETS = ("label", "target", "y")
_BOOKKEEPING = ("idx", "index", "id", "path", "file", "name")
_PER_SAMPLE = (
    *_TARGETS, "len", "time", "step", "class", "cond", "domain", "batch", "index", "idx", "ids", "offset", "pos",
    "size", "weight", "t", "c",
)  # fmt: skip


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model without DistributedDataParallel or DataParallel.

    The forward of the first has collectives of its own; the second runs copies of the model.
    """
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        inner: nn.Module = model.module
        return inner
    return model


def forward_batch(operation: str, forward: Forward | None = None) -> Forward:
    """Return the function that runs a model on a batch.

    A batch is what the model takes:

    - a tensor, or another single argument such as a graph;
    - a tuple or list of positional arguments. Items that the forward does not take are targets and left out, as in
      (input, target). So is an item with one value per sample where the forward's next parameter is optional and,
      by its name, takes no such values: `(images, labels)` for `forward(x, attn_mask=None)`. The first item may itself
      be a mapping or a tuple of arguments, followed by a target;
    - a mapping of keyword arguments. Labels, targets and a sample's number or path are left out if the forward does not
      take them. A mapping of which the forward takes no key, but one argument, is that argument;
    - anything, if `forward(model, batch)` says how it goes through the model.

    Tensors are moved to the device of the model's first Parameter.

    Args:
        operation: name of the operation that asks, for messages.
        forward: the user's function, if there is one.

    Returns:
        A function of model and batch. It raises a TypeError for a batch that is none of these, and whatever the model's
        forward raises.

    Raises:
        BatchError: `forward` cannot be called with model and batch.
    """
    if forward is not None:
        _check_forward(operation, forward)
        return forward

    def run(model: nn.Module, batch: Any) -> Any:
        args, kwargs = arguments_of(model, batch, operation)
        device = next((p.device for p in model.parameters()), None)
        if device is not None and device.type != "meta":
            args, kwargs = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        return model(*args, **kwargs)

    return run


def _check_forward(operation: str, forward: Any) -> None:
    expected = f"{operation}: expected forward as a function of model and batch"
    if not callable(forward):
        raise BatchError(f"{expected}, got a {type(forward).__qualname__}.")
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # builtins
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        name = getattr(forward, "__name__", type(forward).__qualname__)
        raise BatchError(f"{expected}, got {name}{signature}: {error}.") from None


def names_of(model: nn.Module, batch: Any) -> list[str]:
    """Return the names of the forward's parameters that a batch fills, as `forward_batch` reads it."""
    args, kwargs = arguments_of(model, batch, "")
    positional = [p.name for p in _parameters(model) or () if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [*positional[: len(args)], *kwargs]


def copied(batch: Any) -> Any:
    """Return a copy of a batch, whose tensors a forward may write to. Objects that cannot be copied stay."""
    if isinstance(batch, Mapping) and not isinstance(batch, dict):
        batch = dict(batch)
    return tree_map(_copied, batch)


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    try:
        return copy.deepcopy(leaf)
    except Exception:  # whatever an object of the user's raises
        return leaf


def arguments_of(model: nn.Module, batch: Any, operation: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments in a batch, as `forward_batch` says."""
    if isinstance(batch, Mapping):
        if _takes(model, batch):
            return (), _keywords(model, batch, operation)
        return (batch,), {}
    if isinstance(batch, Tensor | PackedSequence):
        return (batch,), {}
    if not isinstance(batch, tuple | list):
        if batch is None or isinstance(batch, str | bytes | int | float | complex):
            raise _no_batch(operation, batch)
        return (batch,), {}
    items = tuple(batch)
    if not items or isinstance(items[0], str | bytes):
        raise _no_batch(operation, batch)
    if isinstance(items[0], Mapping) and _takes(model, items[0]):
        return (), _keywords(model, items[0], operation)
    return _positional(model, items), {}


def _no_batch(operation: str, batch: Any) -> BatchError:
    return BatchError(
        f"{operation}: expected batches as the model takes them (a tensor, a tuple or list of positional arguments, or "
        f"a mapping of keyword arguments), got {type(batch).__name__}: say how it goes through the model by "
        "forward=lambda model, batch: …."
    )


def _keywords(model: nn.Module, batch: Mapping[str, Any], operation: str) -> dict[str, Any]:
    """Return the keyword arguments in a mapping, without targets that the forward does not take."""
    parameters = _parameters(model)
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(batch)
    names = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    foreign = [key for key in batch if key not in names]
    unknown = [key for key in foreign if not _is_left_out(str(key).lower())]
    if unknown:
        raise BatchError(
            f"{operation}: expected a mapping of the forward's arguments ({', '.join(names)}), got one with "
            f"{', '.join(map(str, unknown))}: rename or remove these, or say how it goes through the model by "
            "forward=lambda model, batch: …."
        )
    return {key: value for key, value in batch.items() if key not in foreign}


def _takes(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Whether the forward takes a mapping's items as keyword arguments, rather than the mapping as one argument."""
    parameters = _parameters(model)
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return True
    names = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)}
    required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    return any(key in names for key in batch) or len(required) != 1 or required[0].kind is required[0].KEYWORD_ONLY


def _is_left_out(key: str) -> bool:
    return any(part in key for part in _TARGETS if len(part) > 1) or key in ("y", *_BOOKKEEPING)


def _positional(model: nn.Module, items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the items that are arguments of the forward, without those behind them, which are targets."""
    parameters = _parameters(model)
    samples = next((item.shape[0] for item in items if isinstance(item, Tensor) and item.ndim), None)
    if parameters is None:  # a forward of *args: only a target can be recognized
        return items[:-1] if len(items) == 2 and _is_target(items[1], samples) else items
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    first = items[0]
    if isinstance(first, tuple | list) and len(items) == 2 <= len(first) <= len(positional):
        inner = next((item.shape[0] for item in first if isinstance(item, Tensor) and item.ndim), None)
        if len(first) == required or (len(first) > required and _is_target(items[1], inner)):
            return _positional(model, tuple(first))  # ((a, b), target) for forward(a, b)
    taken = min(len(items), max(required, 1))
    for item, parameter in zip(items[taken:], positional[taken:], strict=False):
        if _is_target(item, samples) and not _is_per_sample(parameter.name):
            break
        taken += 1
    return items[:taken]


def _is_target(item: Any, samples: int | None) -> bool:
    """Whether an item looks like targets: one value per sample."""
    if isinstance(item, Tensor):
        return item.ndim == 0 or (item.ndim == 1 and samples in (None, item.shape[0]))
    return isinstance(item, str | int | float) or (
        isinstance(item, Sequence) and all(isinstance(value, str | int | float) for value in item)
    )


def _is_per_sample(name: str) -> bool:
    plain = name.lower()
    return any(plain == part or (len(part) > 1 and part in plain) for part in _PER_SAMPLE)


def _parameters(model: nn.Module) -> list[inspect.Parameter] | None:
    """Return the parameters of the forward; those of the model inside a wrapper whose own are *args and **kwargs.

    None where they cannot be told, as with other forwards of *args.
    """
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return None
    if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return parameters
    if all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        inner = next((model._modules[name] for name in _WRAPPED if model._modules.get(name) is not None), None)
        return None if inner is None else _parameters(inner)
    return None


def origin_is(error: BaseException, package: str) -> bool:
    """Return whether an exception was raised by a module of a package itself, such as "gammabeta.introspection"."""
    trace = error.__traceback__
    name = ""
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return name == package or name.startswith(package + ".")
