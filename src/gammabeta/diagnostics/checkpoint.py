"""Checkpoint files: read their vectors, which is all that norms store, and their floats; no code in the file is run."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from gammabeta.diagnostics.checkpoints.contents import CheckpointError, Contents, printable
from gammabeta.diagnostics.checkpoints.recognize import is_regular, recognize
from gammabeta.diagnostics.checkpoints.safetensors_reader import read_safetensors
from gammabeta.diagnostics.checkpoints.shards import Files, alone, files_of
from gammabeta.diagnostics.checkpoints.torch_reader import read_torch
from gammabeta.diagnostics.record import Record, record_state

__all__ = ["Checkpoint", "CheckpointError", "read_checkpoint", "record_checkpoint"]

# Bytes of the tensors of several axes that are looked at.
_MOST_BYTES = 16_000_000_000


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as the rules see it.

    Attributes:
        record: its norms.
        files: the files that were read.
        left_out: number of vectors that no rule can read, by what they are.
        said: sentences on which files were read, and what of them was looked at.
    """

    record: Record
    files: tuple[Path, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    said: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not read, and what was left out, as sentences; () where nothing was."""
        if not self.left_out:
            return self.said
        counts = ", ".join(f"{count} {_plural(what, count)}" for what, count in sorted(self.left_out.items()))
        return (*self.said, f"left out: {counts}")


def record_checkpoint(path: Path | str) -> Record:
    """Record the norms in a checkpoint; arguments and errors are those of `read_checkpoint`.

    Returns:
        The `Record`, without a model.
    """
    return read_checkpoint(path).record


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read the norms in a checkpoint, which is recognized by its content, whatever its name.

    Args:
        path: a safetensors file, or a file to which torch.save or pickle wrote a state_dict, directly or inside dicts.
            Keys of dicts become prefixes of the norms' names, except for one wrapper (state_dict, model) around all of
            them. An index, a shard or a folder stands for the whole checkpoint of which it is a part.

    Returns:
        The `Checkpoint`.

    Raises:
        CheckpointError: the file does not exist, is of another kind or damaged, has no norms, or holds objects other
            than tensors and plain values, which only code from the file could build; or shards are missing.
    """
    path = Path(path)
    named = printable(str(path))
    try:
        _check_exists(path, named)
        files, contents = _read_all(path, files_of(path))
    except OSError as error:
        raise CheckpointError(f"{named}: cannot be read: {error.strerror or type(error).__name__}.") from error
    except MemoryError as error:
        raise CheckpointError(f"{named}: expected a checkpoint, got one that does not fit into the memory.") from error
    state = contents.norms()
    prefix = _common_prefix(state)
    record = record_state({key.removeprefix(prefix): tensor for key, tensor in state.items()})
    matrices, note = _looked_at(contents.matrices)
    every = {**record.tensors, **{key.removeprefix(prefix): tensor for key, tensor in matrices.items()}}
    record = replace(record, tensors=every)
    if not record.norms:
        left_out = Checkpoint(record, (), contents.left_out).notes
        raise CheckpointError(
            f"{named}: expected keys of norms, such as bn1.running_mean, or norm.weight with norm.bias, got "
            f"{contents.tensors} tensors without such keys{''.join(f' ({note})' for note in left_out)}: is it a "
            "model's state_dict?"
        )
    return Checkpoint(record, files.paths, contents.left_out, tuple(filter(None, (files.note, note))))


def _check_exists(path: Path, named: str) -> None:
    if os.path.islink(path) and not os.path.exists(path):
        raise CheckpointError(f"{named}: is a link to {printable(os.readlink(path))}, which does not exist.")
    if not os.path.exists(path):
        raise CheckpointError(f"{named}: there is no such file.")
    if not is_regular(path):
        raise CheckpointError(f"{named}: expected a file or a folder, got a device or a pipe.")


def _read_all(path: Path, files: Files) -> tuple[Files, Contents]:
    """Read the files of a checkpoint; only the one that was named, where the others turn out to be none of its."""
    contents = Contents()
    for file in files.paths:
        more = _read(file)
        shared = contents.keys & more.keys
        if shared and files.named is not None:
            return _read_all(path, alone(path, files, printable(min(shared))))
        contents.merge(more)
    return files, contents


def _read(path: Path) -> Contents:
    kind = recognize(path)
    if kind == "index":
        raise CheckpointError(f"{path}: expected a shard with tensors, got another index.")
    return read_safetensors(path) if kind == "safetensors" else read_torch(path, kind)


def _plural(what: str, count: int) -> str:
    """Return the plural of "quantized tensor", "layer whose …" and the like."""
    if count == 1:
        return what
    first, space, rest = what.partition(" of ") if " of " in what else what.partition(" whose ")
    return f"{first}s{space}{rest}"


def _looked_at(matrices: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of several axes up to a limit of bytes, and a note on the others or ""."""
    found: dict[str, Tensor] = {}
    size = 0
    for key, tensor in matrices.items():
        size += tensor.numel() * tensor.itemsize
        if size > _MOST_BYTES:
            rest = len(matrices) - len(found)
            return found, f"not looked at: {rest} tensors of several axes, beyond {_MOST_BYTES / 1e9:.3g} GB of them"
        found[key] = tensor
    return found, ""


def _common_prefix(state: dict[str, Tensor]) -> str:
    """Return the "state_dict." or "model." with which all keys begin if the state_dict was inside a dict, or "".

    Keys without a dot are of what lies beside it, such as the epoch.
    """
    dotted = [key for key in state if "." in key]
    for wrapper in ("state_dict.", "model_state_dict.", "model."):
        if dotted and all(key.startswith(wrapper) for key in dotted):
            return wrapper
    return ""
