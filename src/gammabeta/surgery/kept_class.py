"""What of a subclass still holds when its layer becomes one of ours: all but what our classes define themselves."""

from __future__ import annotations

from typing import Any

from torch import nn

from gammabeta.introspection.norms import OURS, TORCHS, TORCHS_MODULES
from gammabeta.introspection.same_as_base import computes_as

# Names that each class has, and methods whose loss changes nothing that a layer computes or stores.
_HARMLESS = {
    "__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__annotate__", "__dict__", "__weakref__",
    "__static_attributes__", "__firstlineno__", "__constants__", "__parameters__", "__orig_bases__", "__slots__",
    "__abstractmethods__", "_abc_impl", "__annotations_cache__", "__annotate_func__", "__type_params__",
    "extra_repr", "__repr__", "reset_parameters", "init_weights",
}  # fmt: skip


def torchs_base(cls: type[nn.Module]) -> Any:
    """Return the class of torch's or ours that a norm derives from; None for another library's own."""
    return next((b for b in cls.__mro__ if b in OURS or b in TORCHS or b.__module__ in TORCHS_MODULES), None)


def adds_nothing(module: nn.Module) -> bool:
    """Return whether a module of a subclass of torch's norms computes and stores what torch's class does."""
    cls, torchs = type(module), torchs_base(type(module))
    if torchs not in OURS or why_not_kept(cls, OURS[torchs]) is not None:
        return False
    return cls.forward is torchs.forward or computes_as(module, torchs)


def why_not_kept(cls: type[nn.Module], ours: type[nn.Module]) -> str | None:
    """Return which method of a class would no longer be called in a layer of ours; None where none is.

    In the adopted class (`adopted_class`) our methods and those of `nn.Module` are found before those of the old class.
    Methods under other names are still there.
    """
    for base in cls.__mro__:
        if base is nn.Module or base in OURS or base in TORCHS or base.__module__ in TORCHS_MODULES:
            break
        for name, value in vars(base).items():
            if name == "_check_input_dim" and not _calls_super(value):
                continue  # `adopted_class` takes it over
            if name not in _HARMLESS and name != "forward" and hasattr(ours, name):
                return f"{cls.__name__} has a {name} of its own, which would be lost"
    return None


def own_check(cls: type[nn.Module]) -> Any:
    """Return the `_check_input_dim` of a subclass of torch's norms, if it is the class's own and needs no base's."""
    definer = next((base for base in cls.__mro__ if "_check_input_dim" in vars(base)), None)
    if definer is None or definer in OURS or definer in TORCHS or definer.__module__ in TORCHS_MODULES:
        return None
    check = vars(definer)["_check_input_dim"]
    return None if _calls_super(check) else check


def _calls_super(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is None or "__class__" in code.co_freevars or "super" in code.co_names
