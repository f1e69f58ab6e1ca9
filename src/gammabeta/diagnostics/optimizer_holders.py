"""Search for what depends on an optimizer's groups without a trace in the optimizer, as schedulers of one's own do."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import CellType, FunctionType, GeneratorType
from typing import Any

import torch
from torch import Tensor

# An attribute's dict or a closure's cell, and a list or tuple in it, lie between the holder and what it holds.
_STEPS = 3
_CONTAINERS = (dict, list, tuple, CellType)
# What was found in this block, by the optimizer's id: the search looks at all objects that there are.
_found: ContextVar[dict[int, str | None] | None] = ContextVar("found", default=None)


@contextmanager
def searching_once() -> Iterator[None]:
    """Search only once for each optimizer within the block."""
    token = _found.set({})
    try:
        yield
    finally:
        _found.reset(token)


def holder_of(optimizer: torch.optim.Optimizer) -> str | None:
    """Return in words what depends on the optimizer's groups; None if nothing is known to."""
    found = _found.get()
    if found is None:
        return _search(optimizer)
    if id(optimizer) not in found:
        found[id(optimizer)] = _search(optimizer)
    return found[id(optimizer)]


def _search(optimizer: torch.optim.Optimizer) -> str | None:
    if _judge(optimizer) is None:
        return None
    gc.collect()  # an object that nothing refers to any more may still be there
    return _judge(optimizer)


def _judge(optimizer: torch.optim.Optimizer) -> str | None:
    for owner in _owners(optimizer, optimizer.param_groups):
        if isinstance(owner, torch.optim.Optimizer):
            continue  # one that wraps the other shares its list of groups
        names = [cls.__name__.lower() for cls in type(owner).__mro__]
        if any("sched" in name or name.startswith(("lr", "reducelr")) for name in names):
            return f"a {type(owner).__name__} holds the optimizer"
        what = getattr(owner, "__qualname__", type(owner).__qualname__)
        if callable(getattr(type(owner), "step", None)) and not isinstance(owner, torch.nn.Module):
            return f"a {what} holds the optimizer, and its step may set the values of the groups that there are"
        for name, value in _held(owner):
            if value is optimizer.param_groups:
                return f"{what} holds the list of its groups ({name})"
            if _is_number_for_each(value, len(optimizer.param_groups)):
                return f"{what} holds the optimizer, and {name} may have a value for each group"
    return None


def _owners(*targets: object) -> Iterator[Any]:
    """Yield the instances, functions, generators and partials that hold one of the targets, once each."""
    seen = {id(target) for target in targets}
    frontier: list[Any] = list(targets)
    for _ in range(_STEPS):
        referrers = gc.get_referrers(*frontier)
        seen |= {id(frontier), id(referrers)}
        frontier = []
        for referrer in referrers:
            if id(referrer) in seen:
                continue
            seen.add(id(referrer))
            if isinstance(referrer, _CONTAINERS):
                # The variables of a whole module or of a session are no holder.
                if not (isinstance(referrer, dict) and "__name__" in referrer):
                    frontier.append(referrer)
            elif not isinstance(referrer, type) and not type(referrer).__module__.startswith("gammabeta."):
                yield referrer
        if not frontier:
            return


def _held(owner: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, by name."""
    if isinstance(owner, FunctionType):
        for name, cell in zip(owner.__code__.co_freevars, owner.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # it is empty
                continue
    elif isinstance(owner, GeneratorType):
        yield from {} if owner.gi_frame is None else owner.gi_frame.f_locals.items()
    elif isinstance(owner, partial):
        yield from ((f"argument {i}", value) for i, value in enumerate(owner.args))
        yield from owner.keywords.items()
    else:
        yield from getattr(owner, "__dict__", {}).items()
        for cls in type(owner).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(owner, name):
                    yield name, getattr(owner, name)


def _is_number_for_each(value: Any, count: int) -> bool:
    value = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(value, list | tuple) or len(value) != count or not count:
        return False
    return all(
        (isinstance(one, int | float) and not isinstance(one, bool)) or (isinstance(one, Tensor) and one.ndim == 0)
        for one in value
    )
