"""The transaction under every change in place: a journal of edits, each with the step that undoes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.pages.notebook import table

_ABSENT = object()
_NAMED = 2  # modules by name, where a row is about more


@dataclass(frozen=True)
class Entry:
    """The outcome for one module.

    Attributes:
        module: its qualified name; "" is the model itself.
        done: whether it was changed.
        what: what was done, or why the module was left alone.
        numbers: measurements, by name.
        several: the same of several modules, as words that their number precedes; "" where `what` serves them too.
    """

    module: str
    done: bool
    what: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    several: str = ""


class Change:
    """What an operation did to a model, module by module, and how to undo it.

    It prints as a table, in which modules with the same outcome share a row. `undo()` restores exactly what the
    operation changed: the same Parameter objects, hooks and classes, and the bits of buffers. Later changes to anything
    else stay. Used as a context manager, it undoes on leaving the block.

    Attributes:
        operation: its name.
        entries: one `Entry` for each module that was looked at, in the order of the model.

    Operations build it within `transaction`, with the methods from `set_class` on. Each of these records how to undo
    its edit.
    """

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.entries: list[Entry] = []
        self._undo_steps: list[Callable[[], None]] = []
        # Values that must still be as this change left them, or undoing would not lead back to the start.
        self._expected: dict[tuple[nn.Module, str], tuple[str, Any]] = {}
        self._forbidding: list[Callable[[], str | None]] = []

    @property
    def changed(self) -> list[str]:
        """The names of the modules that were changed."""
        return [entry.module for entry in self.entries if entry.done]

    @property
    def left(self) -> dict[str, str]:
        """The modules that were left alone, each with the reason, or with all reasons."""
        reasons: dict[str, list[str]] = {}
        for entry in self.entries:
            if not entry.done:
                reasons.setdefault(entry.module, []).append(entry.what)
        return {module: "; ".join(whys) for module, whys in reasons.items()}

    @property
    def stands(self) -> bool:
        """Whether there is something to undo."""
        return bool(self._undo_steps)

    def undo(self) -> None:
        """Restore everything that the operation changed; a second call does nothing.

        Raises:
            RuntimeError: a later change to the same layers is still in place; undo that one first. Or something was
                built on the change since, such as a scheduler on an optimizer's groups. Nothing was changed.
        """
        for (module, attribute), (name, value) in self._expected.items():
            now = getattr(module, attribute, None)
            if now is not value and now != value:
                what = "its class" if attribute == "__class__" else attribute
                raise RuntimeError(
                    f"{self.operation}: expected {name or 'the model'} as this change left it, with {what} "
                    f"{_describe(value)}, got {_describe(now)}: undo the later change first."
                )
        for why_not in self._forbidding:
            reason = why_not()
            if reason is not None:
                raise RuntimeError(f"{self.operation}: cannot be undone now: {reason}.")
        self.roll_back()

    def __enter__(self) -> Change:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __str__(self) -> str:
        lines, rows = [self._summary()], self._rows()
        if not rows:
            return lines[0]
        width = max(len(names) for names, _ in rows)
        lines += [f"  {names:<{width}}  {outcome}" for names, outcome in rows]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table(self._summary(), ("modules", "outcome"), self._rows())

    def _summary(self) -> str:
        if not self.entries:
            return f"{self.operation}: nothing to change"
        count = len(self.changed)
        return f"{self.operation}: {count} changed, {len(self.entries) - count} left alone"

    def _rows(self) -> list[tuple[str, str]]:
        return [(name_some([entry.module for entry in same]), _describe_alike(same)) for same in self._alike()]

    def _alike(self) -> list[list[Entry]]:
        """Return the entries, those with the same outcome together, in the order of the first of each."""
        groups: dict[tuple[Any, ...], list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault((entry.done, entry.what, tuple(entry.numbers.items())), []).append(entry)
        return list(groups.values())

    def note(self, module: str, what: str, **numbers: float) -> None:
        """Add an entry for a module that was changed."""
        self.entries.append(Entry(module, True, what, numbers))

    def count(self, module: str, what: str, several: str) -> None:
        """Add an entry for a module that was changed; `several` says the same of many, behind their number."""
        self.entries.append(Entry(module, True, what, several=several))

    def leave(self, module: str, reason: str, **numbers: float) -> None:
        """Add an entry for a module that was left alone."""
        self.entries.append(Entry(module, False, reason, numbers))

    def include(self, other: Change) -> None:
        """Take over the entries and undo steps of another change, which can then no longer be undone on its own."""
        self.entries += other.entries
        self._undo_steps += other._undo_steps
        self._expected |= other._expected
        self._forbidding += other._forbidding
        other._undo_steps, other._expected, other._forbidding = [], {}, []

    def set_class(self, module: nn.Module, cls: type[nn.Module], name: str) -> None:
        """Change the class of the same object; `name` is the module's, for messages."""
        before = type(module)
        self._undo_steps.append(lambda: setattr(module, "__class__", before))
        module.__class__ = cls
        self._expected[module, "__class__"] = (name, cls)

    def set_attribute(self, module: nn.Module, attribute: str, value: Any, name: str) -> None:
        """Set a plain attribute, no Parameter, buffer or module; `name` is the module's."""
        self._set(module.__dict__, attribute, value)
        self._expected[module, attribute] = (name, value)

    def delete_attribute(self, module: nn.Module, attribute: str) -> None:
        """Delete a plain attribute."""
        self._set(module.__dict__, attribute, _ABSENT)
        self._expected.pop((module, attribute), None)

    def set_buffer(self, module: nn.Module, name: str, value: Tensor | None, *, persistent: bool = True) -> None:
        """Set a buffer, and whether the state_dict has it."""
        self._set(module._buffers, name, value)
        self._set_membership(module._non_persistent_buffers_set, name, not persistent)

    def delete_buffer(self, module: nn.Module, name: str) -> None:
        """Delete a buffer."""
        self._set(module._buffers, name, _ABSENT)
        self._set_membership(module._non_persistent_buffers_set, name, False)

    def set_parameter(self, module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        """Set a Parameter."""
        self._set(module._parameters, name, value)

    def delete_parameter(self, module: nn.Module, name: str) -> None:
        """Delete a Parameter."""
        self._set(module._parameters, name, _ABSENT)

    def set_child(self, parent: nn.Module, name: str, child: nn.Module) -> None:
        """Put another module under a parent's name."""
        self._set(parent._modules, name, child)

    def replace(self, model: nn.Module, old: nn.Module, new: nn.Module) -> None:
        """Put another module in the place of a child, under every name that it has in the model."""
        for parent in list(model.modules()):
            if not isinstance(parent, torch.jit.ScriptModule):
                for key, child in list(parent._modules.items()):
                    if child is old:
                        self.set_child(parent, key, new)

    def set_item(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        """Set an item of any other dict, such as an optimizer's group."""
        self._set(mapping, key, value)

    def delete_item(self, mapping: dict[Any, Any], key: Any) -> None:
        """Delete an item of any other dict."""
        self._set(mapping, key, _ABSENT)

    def overwrite(self, module: nn.Module, name: str, value: Tensor) -> None:
        """Overwrite the contents of a Parameter or buffer, which stays the same object; undoing restores the bits."""
        tensor = _tensor(module, name)
        assert tensor is not None
        before = tensor.detach().clone()

        @torch.no_grad()
        def back() -> None:
            now = _tensor(module, name)
            if now is not None:
                now.copy_(before)

        self._undo_steps.append(back)
        with torch.no_grad():
            tensor.copy_(value)

    def require_grad(self, parameter: nn.Parameter, required: bool) -> None:
        """Set whether a Parameter requires a gradient."""
        before = parameter.requires_grad
        self._undo_steps.append(lambda: setattr(parameter, "requires_grad", before))
        parameter.requires_grad_(required)

    def on_undo(self, back: Callable[[], None]) -> None:
        """Record how to undo an edit that no other method makes; call it before the edit."""
        self._undo_steps.append(back)

    def forbid_undo(self, why_not: Callable[[], str | None]) -> None:
        """Add a test that `undo` makes before it starts: it returns why undoing would break something; None if not."""
        self._forbidding.append(why_not)

    def _set(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        before, order = mapping.get(key, _ABSENT), list(mapping)

        def back() -> None:
            _set_or_remove(mapping, key, before)
            # In the original order, with later additions at the end: the state_dict's keys follow this order.
            present = dict(mapping)
            mapping.clear()
            mapping.update({k: present.pop(k) for k in order if k in present})
            mapping.update(present)

        self._undo_steps.append(back)
        _set_or_remove(mapping, key, value)

    def _set_membership(self, names: set[str], name: str, member: bool) -> None:
        before = name in names
        self._undo_steps.append(lambda: names.add(name) if before else names.discard(name))
        if member:
            names.add(name)
        else:
            names.discard(name)

    def roll_back(self) -> None:
        """Undo without looking for later changes: for temporary changes within an operation."""
        while self._undo_steps:
            self._undo_steps.pop()()
        self._expected.clear()
        self._forbidding.clear()


@contextmanager
def transaction(operation: str) -> Iterator[Change]:
    """Yield a `Change` to be built; an exception inside undoes what was done so far and is passed on."""
    change = Change(operation)
    try:
        yield change
    except BaseException:
        change.roll_back()
        raise


def name_some(modules: Sequence[str]) -> str:
    """Return the names of modules in words: "layer1.0.bn1, layer1.0.bn2 and 50 more"; "" is the model itself."""
    names = list(dict.fromkeys(name or "(the model)" for name in modules))
    if len(names) <= _NAMED + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"


def _describe_alike(entries: Sequence[Entry]) -> str:
    """Describe the outcome that entries share."""
    first = entries[0]
    what = f"{len(entries)} {first.several}" if len(entries) > 1 and first.several else first.what
    numbers = "".join(f"  {key} {_format_number(value)}" for key, value in first.numbers.items())
    return f"{'' if first.done else 'left alone: '}{what}{numbers}"


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    return module._parameters[name] if name in module._parameters else module._buffers.get(name)


def _describe(value: Any) -> str:
    return value.__qualname__ if isinstance(value, type) else str(value)


def _set_or_remove(mapping: dict[Any, Any], key: Any, value: Any) -> None:
    if value is _ABSENT:
        mapping.pop(key, None)
    else:
        mapping[key] = value


def _format_number(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 1e9 else f"{value:.3g}"
