"""The vectors of a checkpoint file, which is where norms keep all that they have; nothing in the file is run."""

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
    """The record of the norms in a checkpoint file.

    Args:
        path: a .safetensors file, or one that torch.save wrote a state_dict to, on its own or inside dicts: of several
            with norms in them each keeps its key as the beginning of its names.

    Returns:
        The `Record`, without a model.

    Raises:
        CheckpointError: there is no such file, it is damaged, holds more than tensors and plain values, which only
            code that the file brings could build, or has no norms.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file.")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: expected a checkpoint file ({', '.join(SUFFIXES)}), got one of another kind.")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else dict(_flat(_read_torch(path)))
    record = record_state(_without_common_beginning(state))
    if not record.norms:
        raise CheckpointError(
            f"{path}: expected keys of norms, as bn1.running_mean or norm.weight with norm.bias, got "
            f"{len(state)} tensors without: is it a state_dict of a model?"
        )
    return record


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of at most one axis; of the rest not a byte is read.

    Source: the format's description, https://huggingface.co/docs/safetensors: the length of the header in 8 bytes, the
    header in JSON, then the data at the offsets that it tells.
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
                    continue  # of eight bits and less: no norm has that
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
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        # Mapped, what is not looked at is not read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    except Exception as error:
        if "weights_only" in str(error) or "WeightsUnpickler" in str(error) or "TorchScript" in str(error):
            raise CheckpointError(
                f"{path}: expected tensors and plain values, got objects that only code can build, which is not run "
                f"for a file that could hold any: save model.state_dict() instead{_what(error)}."
            ) from error
        raise CheckpointError(
            f"{path}: expected a file that torch.save wrote, got one that is damaged or no such."
        ) from error


def _what(error: Exception) -> str:
    """What the file would have called, if torch's message has it."""
    called = re.search(r"GLOBAL (\S+)", str(error))
    return f" ({called[1]})" if called else ""


def _flat(value: Any, beginning: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings, their keys joined by dots."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str):
                if isinstance(item, Tensor):
                    yield beginning + key, item
                else:
                    yield from _flat(item, f"{beginning}{key}.")


def _without_common_beginning(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the "state_dict." or "model." that every key begins with where the state_dict was put in a dict."""
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if state and all(key.startswith(f"{wrapper}.") for key in state):
            return {key.removeprefix(f"{wrapper}."): value for key, value in state.items()}
    return state
