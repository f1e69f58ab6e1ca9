"""The choice of modules for an operation: all, by name, from a list, or by a predicate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from gammabeta.arguments import did_you_mean

Where: TypeAlias = str | Sequence[str | nn.Module] | Callable[[str, nn.Module], bool] | None

# The prefixes that wrappers add to names: torch.compile; then DDP, DataParallel and AveragedModel.
_WRAPPERS = ("_orig_mod", "module")


def select(
    model: nn.Module, where: Where, eligible: Callable[[nn.Module], bool], *, operation: str, kind: str
) -> list[tuple[str, nn.Module]]:
    """Return the eligible modules that `where` chooses, each once under its first name, in the model's order.

    Args:
        where: None for all; a glob on the qualified name (`*` crosses dots), also without the prefixes of torch.compile
            and DDP; a list of globs and modules; or a predicate of name and module.
        eligible: which modules the operation can work on.
        operation, kind: the operation, and the plural name of what it works on, for messages.

    Raises:
        ValueError: a pattern, a listed module or the predicate chooses none.
        TypeError: `where` is something else.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if eligible(module):
            names.setdefault(module, []).append(name)
    if where is None:
        chosen = set(names)
    elif isinstance(where, str):
        chosen = _matching(model, names, where, operation, kind)
    elif callable(where) and not isinstance(where, nn.Module):
        chosen = {module for module, known in names.items() if any(where(name, module) for name in known)}
        if not chosen:
            raise ValueError(
                f"{operation}: expected where to choose at least one of the model's {len(names)} {kind}, "
                f"got a predicate that is false for each{_list_names(names)}."
            )
    elif isinstance(where, Sequence) and all(isinstance(item, str | nn.Module) for item in where):
        chosen = set()
        for item in where:
            if isinstance(item, str):
                chosen |= _matching(model, names, item, operation, kind)
            elif item in names:
                chosen.add(item)
            else:
                raise ValueError(
                    f"{operation}: expected where to list {kind} of the model, got a {type(item).__qualname__} that is "
                    f"none of its {len(names)}{_list_names(names)}."
                )
    else:
        raise TypeError(
            f"{operation}: expected where as a glob on the names, a list of globs and modules, or a predicate "
            f"(name, module) -> bool, got {type(where).__qualname__}."
        )
    return [(known[0], module) for module, known in names.items() if module in chosen]


def _matching(
    model: nn.Module, names: dict[nn.Module, list[str]], pattern: str, operation: str, kind: str
) -> set[nn.Module]:
    found = {
        module
        for module, known in names.items()
        if any(fnmatchcase(name, pattern) or fnmatchcase(_without_wrappers(name), pattern) for name in known)
    }
    if found:
        return found
    every = [_without_wrappers(name) for known in names.values() for name in known]
    if any(name.startswith(pattern + ".") for name in every):
        hint = f"did you mean {pattern + '.*'!r}, those inside it?"
    else:
        hint = did_you_mean(pattern, every, _list_names(names).lstrip(": ") + ".", most=3, cutoff=0.5)
    raise ValueError(f"{operation}: expected where to match {kind}, got {pattern!r}, which matches none: {hint}")


def _without_wrappers(name: str) -> str:
    parts = name.split(".")
    while parts and parts[0] in _WRAPPERS:
        parts.pop(0)
    return ".".join(parts)


def _list_names(names: dict[nn.Module, list[str]]) -> str:
    every = [known[0] or "(the model)" for known in names.values()]
    if not every:
        return ": the model has none"
    return f": there are {', '.join(every[:5])}{' …' if len(every) > 5 else ''}"
