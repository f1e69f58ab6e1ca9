"""Forwards that leave no trace: the model, its inputs and the random number generators are restored afterwards."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta._torch_private import TorchDispatchMode, tree_leaves

# The dicts that a module keeps; a shallow copy of each is put back in place. A scripted module keeps views of what
# TorchScript holds under these names, or nothing: its children and parameters cannot be exchanged.
_DICTS = ("_parameters", "_buffers", "_modules")


class UninitializedError(ValueError):
    """A model with parameters that its first forward will make."""


@contextmanager
def unchanged(model: nn.Module, *, watch: bool = True) -> Iterator[None]:
    """Restore the model and the random number generators when the block ends.

    Buffers and parameters keep their objects and get their bits back. Modes, attributes, children, gradients and hooks
    are restored too. An exception inside is passed on afterwards. A parameter is copied only when something writes to
    it.

    Args:
        model: any module whose parameters are initialized.
        watch: whether each operation is checked for a write to a parameter. Turn it off while timing.

    Raises:
        ValueError: a parameter or buffer is uninitialized (lazy modules): a first forward would change the model.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise UninitializedError(
                f"{name}: expected a model whose parameters are initialized, got a lazy one, which its first forward "
                "would change: call the model once."
            )
    modules = list(model.modules())
    # TorchScript keeps the mode of a scripted module outside of its attributes; a frozen one may have none.
    scripted = [m for m in modules if isinstance(m, torch.jit.ScriptModule) and hasattr(m, "training")]
    modes = [(module, module.training) for module in scripted]
    attributes = [(module, vars(module).copy(), _dicts(module)) for module in modules]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    written = _Written(model)
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    try:
        with random_states_kept(devices), written if watch else nullcontext():
            yield
    finally:
        for module, before, dicts in attributes:
            vars(module).clear()
            vars(module).update(before)
            for name, content in dicts.items():
                mine = vars(module)[name]
                mine.clear()
                mine.update(content)
        for module, training in modes:
            module.training = training
        written.restore()
        for parameter, gradient in gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient


@contextmanager
def random_states_kept(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Restore the random number generators of torch, Python and NumPy when the block ends.

    Args:
        devices: those whose generators the block may use, beside the CPU's.
    """
    numpy = getattr(sys.modules.get("numpy"), "random", None)  # if something has loaded it
    array, python = numpy.get_state() if numpy else None, random.getstate()
    try:
        with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.set_state(array)


def set_mode(model: nn.Module, training: bool) -> None:
    """Call `model.train(training)`; where a part of the model has no modes, as what torch.export made, set the others.

    A part that refuses stays as it is: the program that was exported is the same in both modes.
    """
    try:
        model.train(training)
    except NotImplementedError:
        for module in model.modules():
            if "train" not in vars(module) and hasattr(module, "training"):
                module.training = training


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every module back into its own mode, training or evaluation, when the block ends."""
    before = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


class _Written(TorchDispatchMode):
    """Copies of all buffers, and of the parameters that an operation is about to write to."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # torch's batch_norm writes running statistics, which its schema does not declare: copy all buffers at once.
        self.copies: list[tuple[Tensor, Tensor]] = [(b, b.detach().clone()) for b in model.buffers()]
        self.parameters: dict[int, list[Tensor]] = {}
        for parameter in model.parameters():
            storage = storage_of(parameter)
            if storage is not None:
                self.parameters.setdefault(storage._cdata, []).append(parameter)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in written_by(func, args, kwargs or {}):
            storage = storage_of(tensor)
            if storage is not None:
                for parameter in self.parameters.pop(storage._cdata, ()):
                    self.copies.append((parameter, parameter.detach().clone()))
        return func(*args, **(kwargs or {}))

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, copy in self.copies:
            if tensor.is_meta:  # it has no values
                continue
            if tensor.shape != copy.shape:  # as observers of quantization resize theirs in the first forward
                tensor.resize_(copy.shape)
            # A NaN is not equal to itself, so its tensor is written again, which does no harm.
            if not torch.equal(tensor, copy):
                tensor.copy_(copy)


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors among an operation's arguments that its schema declares as written."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    found: list[Tensor] = []
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """Return the storage of a tensor; None where it has none (sparse, wrapped by a transform)."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def _dicts(module: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        name: dict(value)
        for name, value in vars(module).items()
        if (name in _DICTS or name.endswith("_hooks")) and isinstance(value, dict)
    }
