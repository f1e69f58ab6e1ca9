"""Loading of what the command line names: an object in a package or a file, called with literal arguments if given."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

_FORM = re.compile(r"(?P<where>.+?):(?P<name>[A-Za-z_][\w.]*)(?P<arguments>\(.*\))?", re.DOTALL)
_LIBRARY, _PACKAGES = (
    tuple(Path(sysconfig.get_paths()[name]).resolve() for name in names)
    for names in (("stdlib", "platstdlib"), ("purelib", "platlib"))
)
_TORCH, _OURS = (Path(file).resolve().parent for file in (torch.__file__, __file__))
_REQUIRED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

# Files whose name another module has in sys.modules, by their path: each runs once.
_LOADED: dict[str, ModuleType] = {}


class TargetError(ValueError):
    """Failure to load a target. The message is one sentence for the person who named it."""


@dataclass(frozen=True)
class Function:
    """A function that a target names, and the arguments that the target gives it by name.

    Attributes:
        text: the target in a form that means the same in any working directory, with arguments in the order of names.
    """

    text: str
    module: ModuleType
    name: str
    value: Callable[..., Any]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Target:
    """The object that a target names.

    Attributes:
        text: the target as it was given.
        value: the object, or its result where it had to be called.
        file: the source file, relative to the working directory where it is inside it.
        line: the line in that file where the object is defined.
    """

    text: str
    value: Any
    file: str | None
    line: int


def load_model(text: str) -> Target:
    """Load the model that a target names: an instance, or the result of a class or function without required arguments.

    Args:
        text: "package.module:name" or "file.py:name", either with literal arguments in parentheses.

    Raises:
        TargetError: it cannot be imported, does not exist, needs arguments, raises, or is no module.
    """
    module, name, arguments = _import(text)
    found = _attribute(text, module, name)
    value = found if isinstance(found, nn.Module) and arguments is None else _call(text, name, found, arguments)
    if not isinstance(value, nn.Module):
        hint = ""
        if isinstance(value, torch.export.ExportedProgram):
            hint = ": name what returns its module()"
        elif (
            isinstance(value, Mapping) and value and all(isinstance(tensor, torch.Tensor) for tensor in value.values())
        ):
            hint = ": a state_dict is checked as a file, or loaded into its model"
        raise TargetError(
            f"{text}: expected a torch.nn.Module, or what returns one, got a {type(value).__qualname__}{hint}."
        )
    return Target(text, value, *_place(module, found))


def load_object(text: str, model: nn.Module) -> Any:
    """Load the object that a target names: inputs, a loader, an optimizer.

    A function or class is called: with the arguments in parentheses, without any, or with the model if it requires one.

    Args:
        text: as for `load_model`.
        model: passed to a function that requires an argument.

    Raises:
        TargetError: it cannot be imported, does not exist, needs more arguments, or raises.
    """
    module, name, arguments = _import(text)
    found = _attribute(text, module, name)
    return _call(text, name, found, arguments, model) if callable(found) or arguments is not None else found


def load_forward(text: str) -> Any:
    """Load the forward function that a target names; arguments in parentheses are for a function that returns it.

    Args:
        text: as for `load_model`.

    Raises:
        TargetError: it cannot be imported, does not exist, is no function, or what should return it raises.
    """
    module, name, arguments = _import(text)
    found = _attribute(text, module, name)
    if arguments is not None:
        found = _call(text, name, found, arguments)
    if not callable(found) or isinstance(found, type | nn.Module):
        kind = f"the class {found.__qualname__}" if isinstance(found, type) else f"a {type(found).__qualname__}"
        raise TargetError(f"{text}: expected a function, got {kind}.")
    function: Callable[..., Any] = found
    return function


def load_value(text: str) -> Target:
    """Call the function that a target names, with the arguments in parentheses or without any, and return its result.

    Args:
        text: as for `load_model`.

    Raises:
        TargetError: it cannot be imported, does not exist, is no function, needs arguments, or raises.
    """
    module, name, arguments = _import(text)
    found = _attribute(text, module, name)
    if not callable(found):
        raise TargetError(f"{text}: expected a function, got a {type(found).__qualname__}: write one that returns it.")
    return Target(text, _call(text, name, found, arguments), *_place(module, found))


def load_function(text: str) -> Function:
    """Load the function that a target names, without calling it.

    Args:
        text: as for `load_model`; the arguments in parentheses must have names, since the caller gives the others.

    Raises:
        TargetError: it cannot be imported, does not exist, cannot be called, or has arguments without names.
    """
    module, name, arguments = _import(text)
    found = _attribute(text, module, name)
    if not callable(found):
        raise TargetError(f"{text}: expected a function, got {type(found).__name__}.")
    positional, by_name = _literals(text, arguments) if arguments is not None else ([], {})
    if positional:
        raise TargetError(
            f"{text}: expected arguments with names, as {name}(width=64), got {arguments}: the others are given by the "
            "study."
        )
    return Function(canonical(text), module, name, found, by_name)


def in_any_folder(text: str) -> str:
    """Return the target with its file's absolute path, which means the same in any working directory."""
    form = _FORM.fullmatch(text)
    if form is None or not form["where"].endswith(".py"):
        return text
    return f"{Path(form['where']).expanduser().resolve()}{text[form.end('where') :]}"


def canonical(text: str) -> str:
    """Return the target as :func:`in_any_folder` does, with arguments in the order of their names."""
    form = _FORM.fullmatch(in_any_folder(text))
    if form is None or form["arguments"] is None:
        return in_any_folder(text)
    call = _parse(text, form["arguments"])  # a TargetError where it is none
    words = [ast.unparse(argument) for argument in call.args]
    words += sorted(f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in call.keywords)
    return f"{form['where']}:{form['name']}" + (f"({', '.join(words)})" if words else "")


def short(text: str) -> str:
    """Return the target without the folders of its file."""
    form = _FORM.fullmatch(text)
    return text if form is None else f"{Path(form['where']).name}{text[form.end('where') :]}"


def is_target(text: str) -> bool:
    """Return whether the text has the form of a target, with a .py file or a package that exists."""
    form = _FORM.fullmatch(text)
    if form is None:
        return False
    if form["where"].endswith(".py"):
        return True
    search(Path.cwd())
    package = form["where"].partition(".")[0]
    return package in sys.modules or (package.isidentifier() and importlib.util.find_spec(package) is not None)


def line_of(error: BaseException) -> str:
    """Return the line of the user's code that an exception comes from, as " (train.py, line 12)"; "" if there is none.

    The innermost line that is neither the standard library's, nor an installed package's, nor ours. If all are, that of
    an installed package.
    """
    found = ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).resolve()
        if not path.is_file() or path.is_relative_to(_OURS):
            continue
        here = f" ({path.name}, line {frame.lineno})"
        if any(path.is_relative_to(folder) for folder in (*_PACKAGES, _TORCH)):
            found = found or here
        elif not any(path.is_relative_to(folder) for folder in _LIBRARY):
            return here
    return found


def _import(text: str) -> tuple[ModuleType, str, str | None]:
    form = _FORM.fullmatch(text)
    if form is None and text.rstrip(":").endswith(".py"):
        raise TargetError(f"{text}: expected the name of what is meant in it, as {text.rstrip(':')}:model.")
    if form is None:
        raise TargetError(
            f"{text}: expected package.module:name or file.py:name, either with literal arguments in parentheses, or a "
            "checkpoint file."
        )
    where = form["where"]
    try:
        if not where.endswith(".py"):
            search(Path.cwd())
            module = importlib.import_module(where)
            _refuse_another(text, where, module)
            return module, form["name"], form["arguments"]
        path = Path(where).expanduser().resolve()
        if not path.is_file():
            raise TargetError(f"{text}: there is no file {where}.")
        search(path.parent)
        return _load_file(path), form["name"], form["arguments"]
    except TargetError:
        raise
    except SystemExit as error:
        raise TargetError(
            f"{text}: cannot import {where}: it calls sys.exit({error.code!r}){line_of(error)}; put what is to run as "
            'a script under `if __name__ == "__main__":`.'
        ) from error
    except Exception as error:
        if where.endswith(".py") and _imports_relatively(error, path):
            raise TargetError(f"{text}: {_way_out(path, text[form.end('where') :])}") from error
        raise TargetError(f"{text}: cannot import {where}: {_describe(error)}") from error


def is_installed(path: Path) -> bool:
    """Return whether a file belongs to Python, an installed package, torch or gammabeta, and is not the user's own."""
    return any(path.is_relative_to(folder) for folder in (*_LIBRARY, *_PACKAGES, _TORCH, _OURS))


def search(folder: Path) -> None:
    """Let imports find what is in a folder.

    The folder comes last: a file there that has the name of a module of Python's or of an installed package, such as
    queue.py, must not take its place.
    """
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _refuse_another(text: str, where: str, module: ModuleType) -> None:
    """Raise where the package of the working directory is hidden by an installed one of its name."""
    top, _, _ = where.partition(".")
    here = Path.cwd() / top
    found = getattr(sys.modules.get(top, module), "__file__", None)
    own = next((path for path in (here / "__init__.py", here.with_suffix(".py")) if path.is_file()), None)
    if own is not None and found is not None and is_installed(Path(found).resolve()):
        raise TargetError(
            f"{text}: expected {top} of the working directory, got {found}, which Python finds first: rename one of "
            f"them, or set PYTHONPATH={Path.cwd()}."
        )


def _imports_relatively(error: BaseException, path: Path) -> bool:
    """Whether a file could not be imported on its own because of a relative import of its own."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    own = any(Path(frame.filename).resolve() == path for frame in last)
    return own and isinstance(error, ImportError) and "relative import" in str(error)


def _way_out(path: Path, rest: str) -> str:
    """Say how to name a file of a package that imports relatively."""
    top = path.parent.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    module = ".".join(path.relative_to(top).with_suffix("").parts).removesuffix(".__init__")
    place = "" if top == Path.cwd() else f", and run the command in {top}"
    return f"it imports relatively, which a file on its own cannot: name it as a module, {module}{rest}{place}."


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if str(path) in _LOADED:
        return _LOADED[str(path)]
    module = importlib.util.module_from_spec(spec)
    if known is None:  # dataclasses and pickles look their module up
        sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if known is None:
            sys.modules.pop(path.stem, None)
        raise
    if known is not None:
        _LOADED[str(path)] = module
    return module


def _attribute(text: str, module: ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise TargetError(f"{text}: {module.__name__} has no {name}.")
        found = getattr(found, part)
    return found


def _call(text: str, name: str, found: Any, arguments: str | None, *offered: Any) -> Any:
    if not callable(found):
        if arguments is not None:
            raise TargetError(f"{text}: {name} is a {type(found).__qualname__}, which cannot be called.")
        return found
    if arguments is None:
        required = _required(found)
        if len(required) > len(offered):
            raise TargetError(
                f"{text}: {name} needs arguments ({', '.join(required)}): give literals in parentheses, as "
                f"{text}({', '.join('…' for _ in required)}), or name a function that needs none."
            )
        positional: list[Any] = list(offered[: len(required)])
        by_name: dict[str, Any] = {}
    else:
        positional, by_name = _literals(text, arguments)
    try:
        return found(*positional, **by_name)
    except SystemExit as error:
        raise TargetError(
            f"{text}: {name} calls sys.exit({error.code!r}){line_of(error)}: leave that out where it is called from "
            "here."
        ) from error
    except Exception as error:
        raise TargetError(f"{text}: {name} raised {_describe(error)}") from error


def _required(found: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # builtins
        return []
    return [p.name for p in parameters if p.kind in _REQUIRED and p.default is inspect.Parameter.empty]


def _literals(text: str, arguments: str) -> tuple[list[Any], dict[str, Any]]:
    call = _parse(text, arguments)
    try:
        positional = [ast.literal_eval(argument) for argument in call.args]
        return positional, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (TypeError, ValueError) as error:
        raise _no_literals(text, arguments) from error


def _parse(text: str, arguments: str) -> ast.Call:
    try:
        call = ast.parse("f" + arguments, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise _no_literals(text, arguments) from error
    if not isinstance(call, ast.Call) or any(keyword.arg is None for keyword in call.keywords):
        raise _no_literals(text, arguments)
    return call


def _no_literals(text: str, arguments: str) -> TargetError:
    return TargetError(f"{text}: expected literals in parentheses, as (18, pretrained=False), got {arguments}.")


def _place(module: ModuleType, found: Any) -> tuple[str | None, int]:
    thing = type(found) if isinstance(found, nn.Module) else found
    try:
        file, line = inspect.getsourcefile(thing), inspect.getsourcelines(thing)[1]
    except (TypeError, OSError):
        file, line = getattr(module, "__file__", None), 1
    if file is None:
        return None, 1
    relative = os.path.relpath(file)
    return (file if relative.startswith("..") else relative), max(line, 1)


def _describe(error: BaseException) -> str:
    """Describe an error in one line: its class and the first line of its message."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
