"""The transaction under every change in place: a journal of edits, each with what takes it back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_ABSENT = object()


@dataclass(frozen=True)
class Entry:
    """What became of one module.

    Attributes:
        module: its qualified name; "" is the model itself.
        done: whether it was changed.
        what: what was done, or why it was left alone.
        numbers: what was measured, by name.
    """

    module: str
    done: bool
    what: str
    numbers: Mapping[str, float] = field(default_factory=dict)


class Change:
    """What an operation did to a model, module by module, and the way back.

    Printed it is a table. `undo()` restores what the operation changed, exactly: the same Parameter objects, hooks and
    classes, and the bits of buffers; what happened since to anything else stays. As a context manager it undoes on
    leaving.

    Attributes:
        operation: its name.
        entries: one `Entry` a module that was looked at, in the order of the model.

    Operations build it within `transaction`, by the methods from `set_class` on; each writes down what takes it back.
    """

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.entries: list[Entry] = []
        self._back: list[Callable[[], None]] = []
        # What must be as we left it for the way back to lead where it came from.
        self._kept: dict[tuple[nn.Module, str], tuple[str, Any]] = {}

    @property
    def changed(self) -> list[str]:
        """The names of the modules that were changed."""
        return [entry.module for entry in self.entries if entry.done]

    @property
    def left(self) -> dict[str, str]:
        """The modules that were left alone, each with the reason."""
        return {entry.module: entry.what for entry in self.entries if not entry.done}

    def undo(self) -> None:
        """Puts back everything that the operation changed; a second time it does nothing.

        Raises:
            RuntimeError: a later change to the same layers stands; undo that one first. Nothing was changed.
        """
        for (module, attribute), (name, value) in self._kept.items():
            now = getattr(module, attribute, None)
            if now is not value and now != value:
                what = "its class" if attribute == "__class__" else attribute
                raise RuntimeError(
                    f"{self.operation}: expected {name or 'the model'} as this change left it, with {what} "
                    f"{_said(value)}, got {_said(now)}: undo the later change first."
                )
        self.roll_back()

    def __enter__(self) -> Change:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __str__(self) -> str:
        if not self.entries:
            return f"{self.operation}: nothing to change"
        count = len(self.changed)
        lines = [f"{self.operation}: {count} changed, {len(self.entries) - count} left alone"]
        names = [entry.module or "(the model)" for entry in self.entries]
        width = max(map(len, names))
        for name, entry in zip(names, self.entries, strict=True):
            numbers = "".join(f"  {key} {_short(value)}" for key, value in entry.numbers.items())
            lines.append(f"  {name:<{width}}  {'' if entry.done else 'left alone: '}{entry.what}{numbers}")
        return "\n".join(lines)

    __repr__ = __str__

    def note(self, module: str, what: str, **numbers: float) -> None:
        """An entry for a module that was changed."""
        self.entries.append(Entry(module, True, what, numbers))

    def leave(self, module: str, reason: str, **numbers: float) -> None:
        """An entry for a module that was left alone."""
        self.entries.append(Entry(module, False, reason, numbers))

    def include(self, other: Change) -> None:
        """Takes over another change, entries and way back: both are undone together, and `other` alone no more."""
        self.entries += other.entries
        self._back += other._back
        self._kept |= other._kept
        other._back, other._kept = [], {}

    def set_class(self, module: nn.Module, cls: type[nn.Module], name: str) -> None:
        """The class of the very same object; `name` is the module's, for messages."""
        before = type(module)
        self._back.append(lambda: setattr(module, "__class__", before))
        module.__class__ = cls
        self._kept[module, "__class__"] = (name, cls)

    def set_attribute(self, module: nn.Module, attribute: str, value: Any, name: str) -> None:
        """A plain attribute: neither Parameter nor buffer nor module; `name` is the module's."""
        self._set(module.__dict__, attribute, value)
        self._kept[module, attribute] = (name, value)

    def delete_attribute(self, module: nn.Module, attribute: str) -> None:
        self._set(module.__dict__, attribute, _ABSENT)
        self._kept.pop((module, attribute), None)

    def set_buffer(self, module: nn.Module, name: str, value: Tensor | None, *, persistent: bool = True) -> None:
        self._set(module._buffers, name, value)
        self._set_membership(module._non_persistent_buffers_set, name, not persistent)

    def delete_buffer(self, module: nn.Module, name: str) -> None:
        self._set(module._buffers, name, _ABSENT)
        self._set_membership(module._non_persistent_buffers_set, name, False)

    def set_parameter(self, module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        self._set(module._parameters, name, value)

    def delete_parameter(self, module: nn.Module, name: str) -> None:
        self._set(module._parameters, name, _ABSENT)

    def set_child(self, parent: nn.Module, name: str, child: nn.Module) -> None:
        """Another module object under a parent's name."""
        self._set(parent._modules, name, child)

    def set_item(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        """An item of any other dict: an optimizer's group, for example."""
        self._set(mapping, key, value)

    def delete_item(self, mapping: dict[Any, Any], key: Any) -> None:
        self._set(mapping, key, _ABSENT)

    def overwrite(self, module: nn.Module, name: str, value: Tensor) -> None:
        """The contents of a Parameter or buffer, which stays the same object; undone bit by bit, wherever it is."""
        tensor = _tensor(module, name)
        assert tensor is not None
        before = tensor.detach().clone()

        @torch.no_grad()
        def back() -> None:
            now = _tensor(module, name)
            if now is not None:
                now.copy_(before)

        self._back.append(back)
        with torch.no_grad():
            tensor.copy_(value)

    def require_grad(self, parameter: nn.Parameter, required: bool) -> None:
        before = parameter.requires_grad
        self._back.append(lambda: setattr(parameter, "requires_grad", before))
        parameter.requires_grad_(required)

    def on_undo(self, back: Callable[[], None]) -> None:
        """What takes back an edit that none of the other methods makes; call it before the edit."""
        self._back.append(back)

    def _set(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        before, order = mapping.get(key, _ABSENT), list(mapping)

        def back() -> None:
            _put(mapping, key, before)
            # In the order it had, with what was added since at the end: the state_dict's keys follow this order.
            present = dict(mapping)
            mapping.clear()
            mapping.update({k: present.pop(k) for k in order if k in present})
            mapping.update(present)

        self._back.append(back)
        _put(mapping, key, value)

    def _set_membership(self, names: set[str], name: str, member: bool) -> None:
        before = name in names
        self._back.append(lambda: names.add(name) if before else names.discard(name))
        if member:
            names.add(name)
        else:
            names.discard(name)

    def roll_back(self) -> None:
        """`undo` without a look at what happened since: for changes that an operation makes for its own time."""
        while self._back:
            self._back.pop()()
        self._kept.clear()


@contextmanager
def transaction(operation: str) -> Iterator[Change]:
    """A `Change` to be built: an exception inside takes back what was done so far and goes on."""
    change = Change(operation)
    try:
        yield change
    except BaseException:
        change.roll_back()
        raise


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    return module._parameters[name] if name in module._parameters else module._buffers.get(name)


def _said(value: Any) -> str:
    return value.__qualname__ if isinstance(value, type) else str(value)


def _put(mapping: dict[Any, Any], key: Any, value: Any) -> None:
    if value is _ABSENT:
        mapping.pop(key, None)
    else:
        mapping[key] = value


def _short(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 1e9 else f"{value:.3g}"
