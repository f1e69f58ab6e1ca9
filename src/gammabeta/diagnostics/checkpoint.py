"""Checkpoint files: read their vectors, which is all that norms store; no code in the file is run."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gammabeta.diagnostics.record import Record, record_state

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
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
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


class CheckpointError(ValueError):
    """A file that cannot be read as a checkpoint. The message is one sentence for the person who named it."""


def record_checkpoint(path: Path | str) -> Record:
    """Record the norms in a checkpoint file.

    Args:
        path: a .safetensors file, or a file to which torch.save wrote a state_dict, directly or inside dicts. Keys of
            dicts become prefixes of the norms' names, except for one wrapper (state_dict, model) around all of them.

    Returns:
        The `Record`, without a model.

    Raises:
        CheckpointError: the file does not exist, is damaged, has no norms, or holds objects other than tensors and
            plain values, which only code from the file could build.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file.")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: expected a checkpoint file ({', '.join(SUFFIXES)}), got one of another kind.")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else dict(_flatten(_read_torch(path)))
    record = record_state(_without_common_prefix(state))
    if not record.norms:
        raise CheckpointError(
            f"{path}: expected keys of norms, such as bn1.running_mean, or norm.weight with norm.bias, got "
            f"{len(state)} tensors without such keys: is it a model's state_dict?"
        )
    return record


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors that have at most one axis; of all others only the shape, without reading their data.

    Dtypes that this reader does not know are left out.

    The file begins with the length of the header in 8 bytes. Then come the header in JSON and the data, at the offsets
    that the header gives.

    Source: the format's description, https://huggingface.co/docs/safetensors.
    """
    damaged = CheckpointError(f"{path}: expected a safetensors file, got one whose header cannot be read.")
    size = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(8)
        length = struct.unpack("<Q", beginning)[0] if len(beginning) == 8 else _LARGEST_HEADER
        if length > min(size - 8, _LARGEST_HEADER):
            raise damaged
        try:
            header = json.loads(file.read(length))
            entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
            state = {}
            for key, entry in entries.items():
                shape, (start, end) = entry["shape"], entry["data_offsets"]
                if entry["dtype"] not in _DTYPES:
                    continue  # eight bits or fewer: no norm has such a dtype
                dtype = _DTYPES[entry["dtype"]]
                if len(shape) > 1:
                    state[key] = torch.empty(shape, dtype=dtype, device="meta")
                    continue
                if end - start != math.prod(shape) * dtype.itemsize or start < 0 or 8 + length + end > size:
                    raise damaged
                file.seek(8 + length + start)
                data = bytearray(file.read(end - start))
                state[key] = torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged from error
    return state


def _read_torch(path: Path) -> Any:
    """Read what torch.save wrote, without running any code in it."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        # A mapped file is read only where it is looked at.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    except Exception as error:
        if "weights_only" in str(error) or "WeightsUnpickler" in str(error) or "TorchScript" in str(error):
            raise CheckpointError(
                f"{path}: expected tensors and plain values, got objects that only code can build{_blocked(error)}; "
                "such code is not run, since it could do anything: save model.state_dict() instead."
            ) from error
        raise CheckpointError(
            f"{path}: expected a file written by torch.save, got one that is damaged or of another kind."
        ) from error


def _blocked(error: Exception) -> str:
    """Return what the file would have called, if torch's message names it."""
    called = re.search(r"GLOBAL (\S+)", str(error))
    return f" ({called[1]})" if called else ""


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested mappings, their keys joined by dots."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str):
                if isinstance(item, Tensor):
                    yield prefix + key, item
                else:
                    yield from _flatten(item, f"{prefix}{key}.")


def _without_common_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the "state_dict." or "model." with which all keys begin if the state_dict was inside a dict."""
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if state and all(key.startswith(f"{wrapper}.") for key in state):
            return {key.removeprefix(f"{wrapper}."): value for key, value in state.items()}
    return state
