"""The class of an adopted layer: one of ours that foreign code still takes for the class that the layer had."""

from __future__ import annotations

import copyreg
from typing import Any

from torch import nn

from gammabeta.layers.integrations.class_tables import add_class
from gammabeta.surgery.kept_class import own_check

_made: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


class _Adopted(type):
    """Metaclass that places the old class behind `nn.Module` in the order of methods.

    `isinstance(layer, Old)` holds, and no method of the old class runs: those of ours and of `nn.Module` are found
    first. In Python's own order the old class would stand before torch's base classes and `nn.Module`. Their `super()`
    calls and `__repr__` would then reach its methods.
    """

    def mro(cls) -> list[type]:
        if not _is_made(cls):  # a subclass, as parametrizations and FSDP2 make
            return super().mro()
        ours, old = cls.__bases__
        before: list[type] = list(ours.__mro__[:-1])  # without object
        return [cls, *before, *(base for base in old.__mro__ if base not in before)]


def adopted_class(ours: type[nn.Module], old: type[nn.Module]) -> type[nn.Module]:
    """Make the class of `old` layers that became `ours`, once for each pair; `ours` itself where it is a subclass.

    It has the old class's name. Its instances, and the class itself, are pickled as the pair (ours, old). Another
    process makes the class again from that.
    """
    if issubclass(ours, old):
        return ours
    if (ours, old) not in _made:
        metaclass: Any = _Adopted
        if not issubclass(_Adopted, type(old)):
            metaclass = type("_Adopted", (_Adopted, type(old)), {})
            copyreg.pickle(metaclass, _reduce_class)
        namespace: dict[str, Any] = {
            "__module__": __name__,
            "__qualname__": old.__qualname__,
            "__doc__": f"gammabeta's {ours.__name__}, and still an instance of {old.__module__}.{old.__qualname__}.",
            "__reduce_ex__": _reduce_layer,
        }
        if not issubclass(old, nn.modules.batchnorm._NormBase):  # a frozen BatchNorm of another library
            namespace |= {"_version": getattr(old, "_version", 1), "_load_from_state_dict": _load_without_count}
        check = own_check(old)
        if check is not None:
            namespace["_check_input_dim"] = check
        if _initializes(old):
            namespace["reset_parameters"] = _reset_as_old
        made = _made.setdefault((ours, old), metaclass(old.__name__, (ours, old), namespace))
        add_class(made, ours)
    return _made[ours, old]


def our_class(module: nn.Module) -> type[nn.Module]:
    """Return the module's class; for an adopted layer our class, without the one that it had."""
    cls = type(module)
    return cls.__bases__[0] if _is_made(cls) else cls


def old_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the class that an adopted layer had, where that is no base of ours; otherwise None."""
    cls = type(module)
    return cls.__bases__[1] if _is_made(cls) else None


def _is_made(cls: type) -> bool:
    # Told by the bases, not by a mark in the namespace: pickling by value (cloudpickle) fills the namespace later.
    return isinstance(cls, _Adopted) and len(cls.__bases__) == 2 and not any(
        isinstance(base, _Adopted) for base in cls.__bases__
    )  # fmt: skip


def _initializes(old: type[nn.Module]) -> bool:
    """Return whether a class, or a base that is not torch's, has a `reset_parameters`."""
    definer = next((base for base in old.__mro__ if "reset_parameters" in vars(base)), None)
    return definer is not None and not definer.__module__.startswith("torch.nn.")


def _reset_as_old(self: Any) -> Any:
    """Run the old class's `reset_parameters`, on a layer that is of that class meanwhile: it may call `super()`."""
    made = type(self)
    self.__class__ = made.__bases__[1]
    try:
        return self.reset_parameters()
    finally:
        self.__class__ = made


def _reduce_layer(self: nn.Module, protocol: Any) -> Any:
    reduced: Any = object.__reduce_ex__(self, protocol)
    if not _is_made(type(self)):
        return reduced
    return _new, type(self).__bases__, *reduced[2:]


def _new(ours: type[nn.Module], old: type[nn.Module]) -> nn.Module:
    cls = adopted_class(ours, old)
    return cls.__new__(cls)


def _reduce_class(cls: type) -> Any:
    return (adopted_class, cls.__bases__) if _is_made(cls) else cls.__qualname__


copyreg.pickle(_Adopted, _reduce_class)


def _load_without_count(self: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
    """Load as frozen BatchNorms do: without `num_batches_tracked`, also from checkpoints of layers that have it."""
    if self._buffers.get("num_batches_tracked") is None:
        state_dict.pop(prefix + "num_batches_tracked", None)
    nn.Module._load_from_state_dict(self, state_dict, prefix, *args, **kwargs)
