"""A copy of a module, to be run for an answer: nothing of the original takes part."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gammabeta.introspection.unchanged import random_states_kept

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.Size, torch.dtype, torch.device, type)
_PARTS = ("_parameters", "_buffers", "_modules")


def why_not_run(module: nn.Module) -> str | None:
    """Return why a copy of the module cannot be run on a tensor; None where it can."""
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted"
    if module._modules:
        return f"{name} holds other modules"
    if parametrize.is_parametrized(module):
        return "it is parametrized"
    if "forward" in module.__dict__:
        return "its forward is set on the instance, and would still run"
    if type(module).__call__ is not nn.Module.__call__:
        return f"{name} has a __call__ of its own, which would be lost"
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    if any(nn.parameter.is_lazy(t) for t in tensors):
        return f"{name} has not been initialized"
    if any(type(t) not in (Tensor, nn.Parameter, nn.Buffer) for t in tensors):
        return f"its tensors are of the class {type(tensors[0]).__name__}"
    if any(t.is_meta for t in tensors):
        return "it is on the meta device"
    if len({t.device for t in tensors}) > 1:
        return "it is on several devices"
    arguments = _arguments(type(module).forward)
    if arguments is None or len(arguments) != 1:
        listed = "" if arguments is None else f"{', '.join(arguments) or 'nothing'}, and "
        return f"the forward of {name} takes {listed}not one tensor"
    return None


def argument_of(module: nn.Module) -> str:
    """Return the name of the one argument of a module's forward."""
    name = (_arguments(type(module).forward) or ["input"])[0]
    return "input" if name.startswith("*") else name


def _arguments(forward: Any) -> list[str] | None:
    """Return the names of a forward's arguments; None where it does not say."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return None
    return [str(p).partition(":")[0].partition("=")[0] for p in parameters]


def copy_of(module: nn.Module) -> nn.Module:
    """Copy a module and its children with attributes and tensors, and without hooks.

    Raises:
        Exception: whatever the copy of an attribute raises.
    """
    made: nn.Module = type(module).__new__(type(module))
    for key, value in vars(module).items():
        if key in _PARTS:
            parts = {k: None if part is None else _copied(part) for k, part in value.items()}
            vars(made)[key] = OrderedDict(parts) if isinstance(value, OrderedDict) else parts
        elif "_hooks" in key and isinstance(value, dict):
            vars(made)[key] = OrderedDict()
        elif isinstance(value, _PLAIN):
            vars(made)[key] = value
        else:
            vars(made)[key] = copy.deepcopy(value)
    return made


def _copied(part: Tensor | nn.Module) -> Tensor | nn.Module:
    if isinstance(part, nn.Module):
        return copy_of(part)
    values = part.detach().clone()
    return nn.Parameter(values, values.is_floating_point()) if isinstance(part, nn.Parameter) else values


def is_plain(value: Any) -> bool:
    """Return whether a value is one that cannot change, and that is compared by what it is."""
    return isinstance(value, _PLAIN)


def plain_attributes(module: nn.Module) -> dict[str, Any] | None:
    """Return the attributes of a module beside its tensors, hooks and mode; None where one is not a plain value."""
    found = {}
    for key, value in vars(module).items():
        if key in _PARTS or key == "training" or ("_hooks" in key and isinstance(value, dict)):
            continue
        if key in ("_non_persistent_buffers_set", "_is_full_backward_hook", "_backward_hooks"):
            continue
        parts = value if isinstance(value, tuple | list) else (value,)
        if not all(isinstance(part, _PLAIN) or inspect.isroutine(part) for part in parts):
            return None
        found[key] = tuple(value) if isinstance(value, list) else value
    return found


def same_state(a: Any, b: Any, seen: tuple[int, ...] = ()) -> bool:
    """Return whether two values, such as the attributes of two copies, hold the same; False where that cannot be told.

    Objects are compared by their attributes.
    """
    if a is b or id(a) in seen:  # of a cycle
        return True
    if type(a) is not type(b):
        return False
    seen = (*seen, id(a))
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_state(a[key], b[key], seen) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(lambda x, y: same_state(x, y, seen), a, b))
    return same_state(vars(a), vars(b), seen) if hasattr(a, "__dict__") else bool(a == b)


def state_beside(module: nn.Module) -> dict[str, Any]:
    """Copy what a module holds beside its tensors, hooks and mode.

    Raises:
        Exception: whatever the copy of an attribute raises.
    """
    held = {k: v for k, v in vars(module).items() if k not in (*_PARTS, "training") and "_hooks" not in k}
    return copy.deepcopy(held)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Run a block by torch's defaults, and restore the random number generators that it may use afterwards."""
    with (
        random_states_kept([device]),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
