"""Training with half the activations: what norms hand on is made again in backward instead of being kept."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from gammabeta._torch_private import (
    constant_in_graphs,
    forward_mode_active,
    saved_tensor_hooks_allowed,
    top_saved_tensor_hooks,
    transforms_active,
)
from gammabeta.autograd import exporting
from gammabeta.introspection.forward import Forward
from gammabeta.introspection.norms import is_norm
from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.kept_bytes import kept_bytes
from gammabeta.surgery.remaking import remaking

_made: dict[type[nn.Module], type[nn.Module]] = {}


def recompute(model: nn.Module, example_inputs: Any = None, *, forward: Forward | None = None) -> Change:
    """Make a model's norms hand on tensors that backward makes again, so that it keeps about half the activations.

        kept without:  x of the norm, and y = activation(norm(x) + residual), which the next convolution reads
        kept with:     x; in backward y is made again from x, the statistics, γ, β and the residual

    Gradients stay the same bit by bit. A norm of gammabeta is applied again with the statistics that it took; torch's
    take them again from x. Elementwise operations after a norm, and sums with what is kept or made again too, are made
    again as well, whether modules or the model's own forward call them. Everything else is kept as before. A model that
    was adopted and fused (`gammabeta.adopt`, `gammabeta.fuse`) gains most.

    Only calls of `model` itself count, and only while gradients are recorded. To recompute in a part of a model, give
    the part. Inside of activation checkpointing, under other hooks on saved tensors, in torch.func transforms and
    during export the model runs as without it; so it does under torch.compile, whose partitioner chooses itself what
    is made again.

    Args:
        model: changed in place: it gets a class of the same name, derived from its own. Its layers stay as they are.
        example_inputs: a batch as the model takes it, to measure by ("Batches" in docs/conventions.md). The model runs
            on it as it is, and is left without a trace.
        forward: `forward(model, batch)`, for inputs that go through the model in another way.

    Returns:
        The `Change`. With example inputs its numbers are the bytes that a forward keeps for backward, without and
        with recomputation; parameters and buffers aside.

    Raises:
        ValueError: the model has no norm.
        TypeError: the model is compiled or scripted.
        Exception: whatever the model's forward raises on the example inputs.
        RuntimeError: later, in a backward: what a tensor is made from was changed in place since the forward.

    Source: Chen et al. 2016 (1604.06174), on making activations again; Rota Bulò et al. 2018 (1712.02616), on those
    between a norm and its activation.
    """
    if hasattr(model, "_orig_mod"):
        raise TypeError(
            "recompute: expected a model that runs eagerly, got one that torch.compile made: its partitioner chooses "
            "already what is kept and what is made again. Give it model._orig_mod, for eager runs."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "recompute: expected a model in Python, got a scripted one, whose class cannot be changed: recompute "
            "before torch.jit.script."
        )
    norms = [name for name, module in model.named_modules() if is_norm(module)]
    if not norms:
        raise ValueError(
            f"recompute: expected a model with norms, got {type(model).__name__} without any: activations are made "
            "again from what norms keep."
        )
    with transaction("recompute") as change:
        if is_recomputing(model):
            change.leave("", "it recomputes already")
            return change
        numbers = {}
        if example_inputs is not None:
            kept = kept_bytes(model, example_inputs, forward)
            numbers = {"bytes kept without": float(kept.as_it_is), "with": float(kept.with_recompute)}
        change.set_class(model, _class_of(type(model)), "")
        change.note("", f"{len(norms)} norms' outputs are made again in backward", **numbers)
    return change


def is_recomputing(model: nn.Module) -> bool:
    """Return whether a model's activations are made again after `recompute`."""
    return isinstance(model, _Recomputing)


class _Recomputing(nn.Module):
    """What a model's class derives from while it recomputes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            _say_compiled()
            return super().__call__(*args, **kwargs)
        if _steps_aside():
            return super().__call__(*args, **kwargs)
        with remaking():
            return super().__call__(*args, **kwargs)


@constant_in_graphs
def _say_compiled() -> bool:
    """Warn while a compiler traces, once for each graph, and return True."""
    warnings.warn(
        "recompute: under torch.compile it does nothing: the compiler's partitioner chooses itself what is kept for "
        "backward and what is made again.",
        stacklevel=2,
    )
    return True


def _steps_aside() -> bool:
    """Return whether a forward is left as it is: nothing is recorded, or somebody else decides what is kept."""
    return (
        not torch.is_grad_enabled()
        or exporting()
        or transforms_active()
        or forward_mode_active()
        or not saved_tensor_hooks_allowed()
        or top_saved_tensor_hooks() is not None
    )


def _class_of(old: type[nn.Module]) -> type[nn.Module]:
    """Make the class of a model that recomputes, once for each class that it has otherwise.

    It has the old class's name. Its instances are pickled with the old class, from which another process makes it.
    """
    if old not in _made:
        namespace = {
            "__module__": old.__module__,
            "__qualname__": old.__qualname__,
            "__doc__": old.__doc__,
            "__reduce_ex__": _reduce,
        }
        metaclass: Any = type(old)
        _made[old] = metaclass(old.__name__, (_Recomputing, old), namespace)
    return _made[old]


def _reduce(self: _Recomputing, protocol: Any) -> Any:
    reduced: Any = super(_Recomputing, self).__reduce_ex__(protocol)
    cls = type(self)
    old = cls.__bases__[-1]
    if _made.get(old) is not cls or reduced[0].__name__ != "__newobj__":
        return reduced  # a class derived from ours, or one that is pickled in its own way
    return _new, (old,), *reduced[2:]


def _new(old: type[nn.Module]) -> nn.Module:
    cls = _class_of(old)
    return cls.__new__(cls)
