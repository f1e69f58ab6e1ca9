"""Recognition of a file by its first bytes, whatever its name ends with."""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

from gammabeta.diagnostics.checkpoints.contents import CheckpointError

LARGEST_HEADER = 100_000_000  # bytes of a safetensors header; the format's own limit
_LARGEST_INDEX = 200_000_000  # bytes of an index.json
_BEGINNING = 4096
# The number with which torch.save began its files before torch 1.6, as a pickle holds it.
_LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19"
_UNPACK = "unpack it, and check the file that is inside"
_OTHERS = "gammabeta reads what torch.save and safetensors write"

# What begins with these bytes, and what to do.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for", "run `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "an LZ4 archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them", _OTHERS),
    (b"\x93NUMPY", "a NumPy array (.npy)", _OTHERS),
    (b"GGUF", "a GGUF file, as llama.cpp reads them", f"{_OTHERS}: check the model from which it was converted"),
    (b"%PDF", "a PDF", _OTHERS),
    (b"\x7fELF", "a program", _OTHERS),
)
# Members of zip archives, as patterns of their names, and what the archive is.
_ZIPPED: tuple[tuple[str, str, str], ...] = (
    (
        r"(.*/)?constants\.pkl",
        "a TorchScript archive, whose code would have to run",
        "save torch.jit.load(file).state_dict() with torch.save, and check that",
    ),
    (
        r"(.*/)?(serialized_exported_program\.json|archive_format)",
        "a program of torch.export",
        "save the state_dict of the exported program with torch.save, and check that",
    ),
    (r"model\.weights\.h5|keras_metadata\.pb", "a Keras model", _OTHERS),
    (r".*\.npy", "NumPy arrays (.npz)", "save the arrays as a dict of tensors with torch.save, and check that"),
)


def recognize(path: Path) -> str:
    """Return how a file is to be read: "safetensors", "zip", "legacy", "pickle" or "index".

    Raises:
        CheckpointError: it is something else; the error names it and says what to do.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_BEGINNING)
    if not head:
        raise wrong(path, "an empty file", "did the download or the copy end early?")
    # Before anything else: the length of a header may look like another format's first bytes.
    if is_safetensors(head):
        return "safetensors"
    for magic, what, advice in _MAGIC:
        if head.startswith(magic):
            raise wrong(path, what, advice)
    if head[:2] == b"PK":
        return _recognize_zip(path)
    if _LEGACY in head[:64]:
        return "legacy"
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if head[257:262] == b"ustar":
        raise wrong(path, *_tarred(head))
    return _recognize_text(path, head, size)


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that begins so may be a safetensors file: the length of a header, then JSON."""
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= LARGEST_HEADER


def wrong(path: Path | str, what: str, advice: str) -> CheckpointError:
    """Make the error for a file that is no checkpoint."""
    return CheckpointError(f"{path}: expected a checkpoint, got {what}: {advice.rstrip('.?')}{_end(advice)}")


def read_index(path: Path) -> Any:
    """Return what a JSON file holds; None if it is no JSON."""
    if path.stat().st_size > _LARGEST_INDEX:
        return None
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _recognize_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError) as error:
        raise wrong(path, "a zip archive that is damaged", "did the download or the copy end early?") from error
    for pattern, what, advice in _ZIPPED:
        if any(re.fullmatch(pattern, name) for name in names):
            raise wrong(path, what, advice)
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return "zip"
    some = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
    raise wrong(path, f"a zip archive of other files ({some})" if names else "an empty zip archive", _UNPACK)


def _tarred(head: bytes) -> tuple[str, str]:
    first = head[:100].rstrip(b"\0").decode("utf-8", "replace")
    if first.removeprefix("./").rstrip("/") in ("sys_info", "pickle", "tensors", "storages"):
        return (
            "a tar archive, which is what torch.save wrote before torch 0.1.10",
            "where you trust the file, torch.load(file, weights_only=False) reads it: save its state_dict again",
        )
    return f"a tar archive (of {first}, …)", _UNPACK


def _recognize_text(path: Path, head: bytes, size: int) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        raise wrong(
            path,
            f"an HTML page{_titled(head)}",
            "the download got a page in place of the file, such as a login or an error",
        )
    if text.startswith(b"<"):
        raise wrong(path, "an XML file", "the download may have got an error in place of the file; open it to see")
    if text[:1] in (b"{", b"["):
        index = read_index(path)
        if isinstance(index, dict) and isinstance(index.get("weight_map"), dict):
            return "index"
        raise wrong(path, "JSON without a weight_map", "name the file with the weights, or the index of its shards")
    if head[4:8] == b"TFL3":
        raise wrong(path, "a TensorFlow Lite model", _OTHERS)
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a"):
        raise wrong(path, "an ONNX model", f"{_OTHERS}: check the model from which it was exported")
    if text.startswith((b"(dp", b"(lp", b"ccollections", b"c__builtin__")):
        raise wrong(path, "a pickle of protocol 0", "write it again with torch.save")
    if not any(head):
        raise wrong(path, f"{size:,} bytes that begin with zeros", "did the download or the copy fail?")
    if size > 8 and path.suffix.lower() == ".safetensors":
        raise CheckpointError(f"{path}: expected a safetensors file, got one whose header cannot be read.")
    raise wrong(path, "a file of another kind", _OTHERS)


def _titled(head: bytes) -> str:
    found = re.search(rb"<title[^>]*>\s*([^<]{1,80})", head, re.IGNORECASE)
    title = "" if found is None else " ".join(found[1].decode("utf-8", "replace").split())
    return f" ({title})" if title and title.isprintable() else ""


def _end(advice: str) -> str:
    return "?" if advice.endswith("?") else "."


def is_regular(path: Path) -> bool:
    """Return whether there is a file or a folder, and not a device or a pipe, that could be read without an end."""
    return os.path.isfile(path) or os.path.isdir(path)
