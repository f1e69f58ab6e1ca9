"""Plain pickles of tensors and NumPy arrays, of any protocol: an unpickler that knows no other classes."""

from __future__ import annotations

import io
import mmap
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gammabeta._torch_private import rebuild_module
from gammabeta.diagnostics.checkpoints.contents import Array

# NumPy's names of dtypes that a vector of a norm may have.
_ARRAYS = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}


class GlobalError(pickle.UnpicklingError):
    """A pickle that calls what is neither a tensor's nor an array's; `name` is what it would have called."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it would call {name}")
        self.name = name


def load_pickle(path: Path) -> Any:
    """Return what a file to which pickle.dump wrote holds: tensors, arrays as tensors, plain values.

    Raises:
        GlobalError: it needs something else, which is not called.
        Exception: it is damaged.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _Unpickler(mapped).load()


_Python: Any = pickle._Unpickler


class _Unpickler(_Python):  # type: ignore[misc]
    """Python's unpickler, not C's: that one allocates whatever the file asks for."""

    def find_class(self, module: str, name: str) -> Any:
        found = _GLOBALS.get((module, name))
        if found is None:
            raise GlobalError(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise GlobalError("persistent_load")

    def load_build(self) -> None:
        """Set the state of what is made to take one; a pickle may set the attributes of nothing else."""
        built = self.stack[-2] if len(self.stack) > 1 else None
        if not isinstance(built, _Dict | _Dtype | _Array | _Inert):
            raise GlobalError(f"{type(built).__name__}.__setstate__")
        super().load_build()

    dispatch: ClassVar[dict[int, Any]] = {**_Python.dispatch, pickle.BUILD[0]: load_build}


class _Dtype:
    """A NumPy dtype by its name and byte order; numpy.dtype itself believes what a pickle says of it."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str):
            raise GlobalError("numpy.dtype")
        self.name = name.lstrip("<>|=")
        self.swapped = name.startswith(">")

    def __setstate__(self, state: Any) -> None:
        self.swapped = state[1] == ">"

    def tensor(self, data: Any, shape: Any, *, fortran: bool) -> Tensor:
        """Return the array with these bytes; on meta for a dtype that no norm has."""
        if self.name not in _ARRAYS or self.swapped or not isinstance(data, bytes | bytearray):
            return torch.empty(_sizes(shape), device="meta")
        dtype, sizes = _ARRAYS[self.name], _sizes(shape)
        flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return flat.reshape(sizes[::-1]).permute(*reversed(range(len(sizes)))) if fortran else flat.reshape(sizes)


class _Array(Array):
    """An array of the form in which NumPy pickles it: empty, then its state."""

    tensor = torch.empty(0)

    def __init__(self, *_: Any) -> None:
        pass

    @classmethod
    def of(cls, tensor: Tensor) -> _Array:
        array = cls()
        array.tensor = tensor
        return array

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.tensor = _with(dtype).tensor(data, shape, fortran=bool(fortran))


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    return _Array.of(_with(dtype).tensor(bytes(data), shape, fortran=order == "F"))


def _scalar(dtype: Any, data: Any = b"") -> Array:
    return _Array.of(_with(dtype).tensor(data, (), fortran=False))


def _with(dtype: Any) -> _Dtype:
    if not isinstance(dtype, _Dtype):
        raise GlobalError("numpy.dtype")
    return dtype


def _sizes(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"expected a shape, got {shape!r}")
    return shape


def _load_from_bytes(data: bytes) -> Any:
    """Load a storage, which torch pickles as a file of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode(encoding)


def _rebuild(name: str) -> Callable[..., Any]:
    """Return a function of torch._utils behind a new one, whose attributes a pickle may set without any effect."""

    def rebuild(*arguments: Any) -> Any:
        return getattr(rebuild_module, name)(*arguments)

    return rebuild


class _Dict(OrderedDict[Any, Any]):
    """An OrderedDict, or any dict that only adds attributes to it."""

    def __setstate__(self, state: Any) -> None:
        pass


def _dict(*_: Any) -> _Dict:
    return _Dict()


def _ordered_dict(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


class _Inert:
    """What stands for a class of plain values, such as the arguments of a training: it holds and does nothing."""

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_NUMPY = ("numpy.core", "numpy._core")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
# Classes of plain values, of which nothing runs and nothing is kept.
_PLAIN: dict[tuple[str, str], Any] = {
    ("argparse", "Namespace"): _Inert,
    **{(module, name): _Inert for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{
        (module, name): _Inert
        for module in ("builtins", "__builtin__")
        for name in ("list", "dict", "int", "float", "str", "set", "tuple", "bool")
    },
}
_ARRAYS_OF_NUMPY: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Inert,
    **{(f"{core}.multiarray", "_reconstruct"): _Array for core in _NUMPY},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _NUMPY},
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in _NUMPY},
}
# For torch.load, beside what it builds itself; it adds items to the standard library's own dicts only.
STAND_INS: list[Any] = [
    (stand_in, f"{module}.{name}")
    for (module, name), stand_in in {
        **_PLAIN,
        **_ARRAYS_OF_NUMPY,
        ("collections", "defaultdict"): _ordered_dict,
        ("_codecs", "encode"): _encode,
    }.items()
]
_GLOBALS: dict[tuple[str, str], Any] = {
    **_PLAIN,
    **_ARRAYS_OF_NUMPY,
    ("collections", "OrderedDict"): _Dict,
    ("collections", "defaultdict"): _dict,
    ("collections", "Counter"): _dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild("_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild("_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"): _rebuild("_rebuild_parameter"),
    ("torch._utils", "_rebuild_qtensor"): _rebuild("_rebuild_qtensor"),
    ("torch._utils", "_rebuild_sparse_tensor"): _rebuild("_rebuild_sparse_tensor"),
    ("torch.storage", "_load_from_bytes"): _load_from_bytes,
    ("torch", "Size"): tuple,
    ("_codecs", "encode"): _encode,
}
