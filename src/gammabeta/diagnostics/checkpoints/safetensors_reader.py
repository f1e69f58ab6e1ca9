"""Safetensors files: a header in JSON, and the tensors' bytes at the offsets that it gives."""

from __future__ import annotations

import json
import math
import mmap
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gammabeta.diagnostics.checkpoints.contents import LARGEST_COUNT, CheckpointError, Contents, is_unicode, printable
from gammabeta.diagnostics.checkpoints.recognize import LARGEST_HEADER

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Dtypes of the format that no norm has, with their sizes in bits.
_OTHER_BITS = {"U64": 64, "C64": 64, "U32": 32, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
_OTHER_BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
_MOST_AXES = 64


class _HeaderError(ValueError):
    """A header that the format does not allow; the message ends the sentence "got one whose header …"."""


@dataclass(frozen=True)
class _Entry:
    """A tensor as the header describes it."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(path: Path) -> Contents:
    """Read the tensors with at most one axis; map those of floats with more, and of others read the header only.

    The file begins with the length of the header in 8 bytes. Then come the header in JSON and the data. The header is
    checked as the format demands: every byte of the data belongs to exactly one tensor. Then the package safetensors
    reads the tensors where it is installed; without it they are read here, to the same result.

    Source: the format's description, https://huggingface.co/docs/safetensors.

    Raises:
        CheckpointError: the header cannot be read or contradicts itself, or the file ends early.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            length = _length(file.read(8), size)
            entries = list(_entries(_parse(file.read(length))))
            _check_offsets(entries, size - 8 - length)
        except _HeaderError as error:
            end = "?" if "did the" in str(error) else "."
            raise CheckpointError(f"{path}: expected a safetensors file, got one whose header {error}{end}") from error
        vectors = [entry for entry in entries if len(entry.shape) < 2]
        known = [entry for entry in vectors if entry.dtype in _DTYPES]
        contents = Contents(tensors=len(entries) - len(known), keys={entry.key for entry in entries})
        for entry in vectors:
            if entry.dtype not in _DTYPES:
                contents.left_out[f"vector of dtype {entry.dtype}"] += 1
        own = any(entry.dtype not in _DTYPES and entry.dtype not in _OTHER_BITS for entry in entries)
        read = _tensors if own or not _installed() or not is_unicode(str(path)) else _tensors_by_package
        for key, tensor in read(path, file, 8 + length, known).items():
            contents.add(key, tensor)
        matrices = [entry for entry in entries if len(entry.shape) > 1 and entry.dtype in _DTYPES]
        for key, tensor in _mapped(file, 8 + length, matrices).items():
            contents.matrices[printable(key)] = tensor
    return contents


def _mapped(file: BinaryIO, offset: int, entries: list[_Entry]) -> dict[str, Tensor]:
    """Return tensors of floats that are read from the file only where they are looked at."""
    floats = [entry for entry in entries if _DTYPES[entry.dtype].is_floating_point and entry.end > entry.start]
    if not floats:
        return {}
    # Read-only, since a mapping that may be written needs as much memory as the file has.
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the tensors cannot be written
        return {
            entry.key: torch.frombuffer(
                mapped, dtype=_DTYPES[entry.dtype], count=math.prod(entry.shape), offset=offset + entry.start
            ).reshape(entry.shape)
            for entry in floats
        }


def _installed() -> bool:
    try:
        import safetensors  # noqa: F401
    except ImportError:
        return False
    return True


def _tensors_by_package(path: Path, file: BinaryIO, offset: int, entries: list[_Entry]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as opened:
            return {entry.key: opened.get_tensor(entry.key) for entry in entries}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: expected a safetensors file, got one that is refused: {error}.") from error
    except (RuntimeError, OSError):  # it maps the whole file, which may be larger than the memory
        return _tensors(path, file, offset, entries)


def _tensors(path: Path, file: BinaryIO, offset: int, entries: list[_Entry]) -> dict[str, Tensor]:
    found = {}
    for entry in entries:
        file.seek(offset + entry.start)
        data = bytearray(file.read(entry.end - entry.start))
        dtype = _DTYPES[entry.dtype]
        tensor = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        found[entry.key] = tensor.reshape(entry.shape)
    return found


def _length(beginning: bytes, size: int) -> int:
    length = struct.unpack("<Q", beginning)[0] if len(beginning) == 8 else LARGEST_HEADER + 1
    if length > LARGEST_HEADER:
        raise _HeaderError("cannot be read")
    if length > size - 8:
        raise _HeaderError(f"of {length:,} bytes is longer than the file: did the download or the copy end early")
    return int(length)


def _parse(text: bytes) -> dict[str, Any]:
    """Return the header's entries without its metadata."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except RecursionError as error:
        raise _HeaderError("nests values too deeply") from error
    except _HeaderError:
        raise
    except ValueError as error:
        raise _HeaderError("cannot be read") from error
    if not isinstance(header, dict):
        raise _HeaderError("is no object")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise _HeaderError("has __metadata__ other than texts")
    if len(header) > LARGEST_COUNT:
        raise _HeaderError(f"names {len(header):,} tensors, over {LARGEST_COUNT:,}")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _HeaderError(f"has the key {_short(key)} twice")
        if not is_unicode(key):
            raise _HeaderError("has a key that is not Unicode")
        found[key] = value
    return found


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:79]}…")


def _no_constant(name: str) -> Any:
    raise _HeaderError(f"has the number {name}")


def _entries(header: dict[str, Any]) -> Iterator[_Entry]:
    for key, value in header.items():
        if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= set(value):
            raise _HeaderError(f"has no dtype, shape and data_offsets at {_short(key)}")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or not dtype.isascii() or not dtype.replace("_", "").isalnum():
            raise _HeaderError(f"has the dtype {_short(str(dtype))} at {_short(key)}")
        if not _is_sizes(shape) or len(shape) > _MOST_AXES:
            raise _HeaderError(f"has a shape that is none at {_short(key)}")
        if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise _HeaderError(f"has data_offsets that are none at {_short(key)}")
        entry = _Entry(key, dtype, tuple(shape), *offsets)
        _check_size(entry)
        yield entry


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_size(entry: _Entry) -> None:
    number = math.prod(entry.shape)
    if number >= 2**63:
        raise _HeaderError(f"has a shape with more than 2^63 values at {_short(entry.key)}")
    bits = _DTYPES[entry.dtype].itemsize * 8 if entry.dtype in _DTYPES else _OTHER_BITS.get(entry.dtype)
    if bits is not None and number * bits != (entry.end - entry.start) * 8:
        raise _HeaderError(
            f"gives {_short(entry.key)} {entry.end - entry.start:,} bytes, which its shape and dtype are not"
        )


def _check_offsets(entries: list[_Entry], size: int) -> None:
    """Check that the tensors lie one behind the other and fill the file, as the format demands."""
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != position:
            what = "overlap" if entry.start < position else "leave a gap"
            raise _HeaderError(f"has data_offsets that {what} at {_short(entry.key)}")
        position = entry.end
    if position > size:
        raise _HeaderError(
            f"promises {position:,} bytes of data where {size:,} follow: did the download or the copy end early"
        )
    if position < size:
        raise _HeaderError(f"describes {position:,} bytes of data where {size:,} follow")
