"""What a user's model is: a hash of the code that builds it, of its structure and of its initial weights.

Trials are kept under this hash, so a change of any of the three makes new trials. The code is that of every imported
module of the user's that the model's module reaches through imports, and of every imported module of its package.
Installed packages count by their version; what they build counts by structure and weights.
"""

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.target import is_installed

_OF_MODULE = frozenset(vars(nn.Module()))  # what every module has, such as its hooks
_DEEPEST = 6


def fingerprint(module: ModuleType, one: nn.Module, other: nn.Module) -> str:
    """Return the hash of a model.

    Args:
        module: defines or imports the function that builds the model.
        one, other: two models that the function built in the same way. An attribute that differs between them, such as
            a time, does not count.
    """
    whole = hashlib.sha256()
    for name, content in sorted(code(module).items()):
        whole.update(f"{name}\0{content}\0".encode())
    for line in sorted(set(structure(one)) & set(structure(other))):
        whole.update(line.encode("utf-8", "surrogatepass") + b"\0")
    whole.update(weights(one).encode())
    return whole.hexdigest()[:16]


# --- code ---


def code(module: ModuleType) -> dict[str, str]:
    """Return the hash of each user's module that a module rests on, and the version of each installed package."""
    package = module.__name__.partition(".")[0] if module.__package__ else None
    waiting = [module, *(sys.modules[name] for name in list(sys.modules) if _is_within(name, package))]
    found: dict[str, str] = {}
    while waiting:
        present = waiting.pop()
        path = _file(present)
        if path is None or present.__name__ in found:
            continue
        content = path.read_bytes()
        found[present.__name__] = hashlib.sha256(content).hexdigest()
        if is_installed(path):  # its package was listed as a whole
            continue
        for name in _mentioned(content, present):
            imported = sys.modules.get(name)
            file = None if imported is None else _file(imported)
            if imported is None or file is None:
                continue
            if is_installed(file):
                top = name.partition(".")[0]
                found.setdefault(f"{top}==", str(getattr(sys.modules.get(top), "__version__", "")))
            else:
                waiting.append(imported)
    return found


def _is_within(name: str, package: str | None) -> bool:
    return package is not None and (name == package or name.startswith(f"{package}."))


def _file(module: ModuleType) -> Path | None:
    name = getattr(module, "__file__", None)
    path = None if name is None else Path(name).resolve()
    return path if path is not None and path.is_file() else None


def _mentioned(content: bytes, module: ModuleType) -> Iterator[str]:
    """Yield the names of modules that a module may import: those in import statements, and those it has as a text."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # compiled
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _and_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            if node.level:
                start = importlib.util.resolve_name(start, module.__package__ or "") if module.__package__ else ""
            if start:
                yield from _and_parents(start)
                yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in sys.modules:
            yield node.value  # importlib.import_module("helper")


def _and_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: count + 1]) for count in range(len(parts)))


# --- structure and weights ---


def structure(model: nn.Module) -> Iterator[str]:
    """Yield a line for each module's class, mode and parameters' flags, and for each of its own attributes."""
    for name, module in model.named_modules():
        flags = {key: value.requires_grad for key, value in module.named_parameters(recurse=False)}
        yield json.dumps([name, _class(module), module.training, flags])
        for key, value in vars(module).items():
            if key not in _OF_MODULE:
                yield json.dumps([name, key, _described(value, _DEEPEST)])


def weights(model: nn.Module) -> str:
    """Return the hash of all parameters and buffers with their names, shapes and dtypes."""
    whole = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        whole.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        whole.update(_bytes(tensor))
    return whole.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    dense = tensor.detach().cpu()
    dense = dense.to_dense() if dense.layout is not torch.strided else dense
    dense = dense.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return dense.view(torch.uint8).numpy().tobytes() if dense.numel() else b""


def _class(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _described(value: Any, deep: int) -> Any:
    """Describe an attribute by what stays the same in another process; other objects only by their class."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | complex | bytes):
        return repr(value)
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), hashlib.sha256(_bytes(value)).hexdigest()]
    if isinstance(value, nn.Module) or deep == 0:
        return _class(value)
    if isinstance(value, Mapping):
        return [[_described(key, deep - 1), _described(item, deep - 1)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_described(item, deep - 1) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_described(item, deep - 1)) for item in value)
    if isinstance(value, torch.dtype | torch.device | torch.memory_format):
        return str(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    own = vars(value) if hasattr(value, "__dict__") else {}
    return [_class(value), {str(key): _described(item, deep - 1) for key, item in own.items()}]
