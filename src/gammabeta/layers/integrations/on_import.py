"""Actions that run when another library is imported, without importing or needing it."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]

_actions: dict[str, list[Action]] = {}


def on_import(name: str, action: Action) -> None:
    """Call the action with the module of that name, now if it is imported, otherwise as soon as it is.

    The action runs after each execution of the module, so it runs again after a reload. If it raises, a warning says so
    and the import continues: the other library has to import as it would without us.

    Args:
        name: the module's full name.
        action: called with the module, after its code has run.
    """
    _actions.setdefault(name, []).append(action)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    module = sys.modules.get(name)
    if module is not None:
        _act(action, module)


class _Finder(MetaPathFinder):
    """A finder that finds nothing itself: it asks the finders behind it, and adds the actions to their loader."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        looking: set[str] = self._of_thread.__dict__.setdefault("looking", set())
        # A finder behind us may start a new search, as other libraries' import hooks do.
        if fullname not in _actions or fullname in looking:
            return None
        looking.add(fullname)
        try:
            spec = self._ask_others(fullname, path, target)
        finally:
            looking.discard(fullname)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)
        return spec

    def _ask_others(self, *searched: Any) -> ModuleSpec | None:
        finders = list(sys.meta_path)
        # Those before us have already been asked.
        for finder in finders[finders.index(self) + 1 :] if self in finders else finders:
            spec = finder.find_spec(*searched) if hasattr(finder, "find_spec") else None
            if spec is not None:
                return spec
        return None


class _Loader(Loader):
    """A wrapper of a loader that runs the actions after the module; that loader does everything else."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module has the loader that it would have without us, which provides resources and source.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        for action in tuple(_actions[module.__name__]):
            _act(action, sys.modules.get(module.__name__, module))

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # not there yet, in a copy
            raise AttributeError(name)
        return getattr(self._loader, name)


def _act(action: Action, module: ModuleType) -> None:
    try:
        action(module)
    except Exception as error:
        warnings.warn(
            f"gammabeta: expected the tables of {module.__name__} in which its layers are registered, got "
            f"{type(error).__name__}: {error}. {module.__name__} does not know gammabeta's layers: hand it torch's, "
            "with gammabeta.release(model).",
            RuntimeWarning,
            stacklevel=2,
        )


_finder = _Finder()
