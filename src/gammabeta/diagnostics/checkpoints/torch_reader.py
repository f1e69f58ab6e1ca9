"""What torch.save and pickle wrote: tensors and plain values are built, and nothing that needs code is."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from gammabeta.diagnostics.checkpoints.contents import CheckpointError, Contents, flatten, is_unicode
from gammabeta.diagnostics.checkpoints.plain_pickle import STAND_INS, GlobalError, load_pickle

# Bytes that the compressed members of an archive may unpack to, for each byte in the file.
_DENSEST = 100
# Values of vectors that repeat the few that are stored, as those of expand do.
_MOST_REPEATED = 1_000_000
_LARGEST_PICKLE = 1_000_000_000  # bytes of the pickle in an archive, which holds names and no numbers


def read_torch(path: Path, kind: str) -> Contents:
    """Read the tensors of a file, without running any code in it.

    Args:
        path: the file.
        kind: how it was written, as `recognize` says: "zip" and "legacy" by torch.save, "pickle" by pickle.dump.

    Raises:
        CheckpointError: the file is damaged, or holds objects other than tensors and plain values, which only code
            from the file could build.
    """
    try:
        value = load_pickle(path) if kind == "pickle" else _load(path, zipped=kind == "zip")
    except CheckpointError:
        raise
    except GlobalError as error:
        raise _needs_code(path, error.name) from error
    except Exception as error:
        text = str(error)
        if "weights_only" in text or "WeightsUnpickler" in text or "TorchScript" in text:
            called = re.search(r"GLOBAL (\S+)", text)
            if called is not None or "Unsupported" in text:
                raise _needs_code(path, called[1] if called else "") from error
        if "unable to mmap" in text or "can't allocate memory" in text:
            raise MemoryError from error
        raise CheckpointError(
            f"{path}: expected a file written by torch.save, got one that is damaged: did the download or the copy "
            "end early?"
        ) from error
    if isinstance(value, list | tuple | set):
        raise CheckpointError(
            f"{path}: expected a state_dict, which names its tensors, got a {type(value).__name__} of {len(value)}: "
            "save model.state_dict(), and check each of several files."
        )
    contents = Contents()
    flatten(value, str(path), contents)
    repeated = 0
    for key, vector in contents.vectors.items():
        size, steps = vector.untyped_storage().nbytes(), zip(vector.shape, vector.stride(), strict=True)
        last = vector.storage_offset() + sum((length - 1) * step for length, step in steps)
        repeated += vector.numel() if vector.numel() * vector.itemsize > size else 0
        if (vector.numel() and (last + 1) * vector.itemsize > size) or repeated > _MOST_REPEATED:
            raise CheckpointError(
                f"{path}: expected vectors with their values, got {key} of {vector.numel():,} values with "
                f"{size:,} bytes of data: the file contradicts itself."
            )
    return contents


def _load(path: Path, *, zipped: bool) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals(STAND_INS):
        warnings.simplefilter("ignore")
        # By name, torch.load would go by the suffix, and takes no name that is not Unicode.
        by_name = path.suffix.lower() != ".safetensors" and is_unicode(str(path))
        if zipped and not _is_compressed(path) and by_name:
            # A mapped file is read only where it is looked at.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def _is_compressed(path: Path) -> bool:
    """Return whether an archive's members are compressed, which torch.save does not do.

    Raises:
        CheckpointError: they unpack to far more than the file's size.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    pickles = [member.file_size for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
    if unpacked > _DENSEST * path.stat().st_size or max(pickles) > _LARGEST_PICKLE:
        raise CheckpointError(
            f"{path}: expected a file written by torch.save, got a zip archive of {path.stat().st_size:,} bytes that "
            f"unpacks to {unpacked:,}: it is not unpacked, since it may be meant to fill the memory."
        )
    return any(member.compress_type != zipfile.ZIP_STORED for member in members)


def _needs_code(path: Path, called: str) -> CheckpointError:
    named = f" ({called})" if called else ""
    return CheckpointError(
        f"{path}: expected tensors and plain values, got objects that only code can build{named}; such code is not "
        "run, since it could do anything: save model.state_dict() instead."
    )
