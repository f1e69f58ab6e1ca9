"""Checkpoints of several files: an index, numbered shards, or a folder that holds them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gammabeta.diagnostics.checkpoints.contents import CheckpointError
from gammabeta.diagnostics.checkpoints.recognize import read_index, recognize, wrong

_SHARD = re.compile(r"(?P<stem>.*?)[-_.]?(?P<number>\d{1,6})-of-(?P<total>\d{1,6})(?P<suffix>\.\w+)", re.DOTALL)
_INDEX = ".index.json"
# What the model itself is called in folders that also hold the state of its training.
_USUAL = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "model.pt", "model.pth")
_MOST_FILES = 10_000
# Files that say what a folder is, and what to do with it.
_FOLDERS = (
    (
        ".metadata",
        "a folder of torch.distributed.checkpoint",
        "write it as one file with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt` "
        "(dcp_to_torch_save), and check that",
    ),
    (
        "zero_to_fp32.py",
        "a DeepSpeed checkpoint",
        "write it as one file with the zero_to_fp32.py in it, and check that",
    ),
    ("saved_model.pb", "a TensorFlow SavedModel", "gammabeta reads what torch.save and safetensors write"),
)


def files_of(path: Path) -> list[Path]:
    """Return the files of the checkpoint that a file or a folder stands for, all of which exist.

    Raises:
        CheckpointError: shards are missing, or the folder has no checkpoint or several.
    """
    if path.is_dir():
        return _in_folder(path)
    shard = _SHARD.fullmatch(path.name)
    if shard is not None and int(shard["total"]) > 1:
        return _numbered(path, shard)
    if recognize(path) == "index":
        return _indexed(path)
    return [path]


def _indexed(path: Path) -> list[Path]:
    index: Any = read_index(path)
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
        raise wrong(path, "JSON without a weight_map", "name the file with the weights, or the index of its shards")
    names = list(index["weight_map"].values())
    for name in names:
        if not isinstance(name, str) or not _is_plain(name):
            raise CheckpointError(
                f"{path}: expected names of files in the same folder in weight_map, got {str(name)[:80]!r}."
            )
    if not names:
        raise CheckpointError(f"{path}: expected names of shards in weight_map, got none.")
    return _present(path, [path.parent / name for name in sorted(set(names))])


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\\" not in name and "\0" not in name


def _numbered(path: Path, shard: re.Match[str]) -> list[Path]:
    """Return all shards of which one is given: those of its index, or those with the same name and total."""
    total = int(shard["total"])
    number = slice(*shard.span("number"))
    name, width = path.name, len(shard["number"])
    first = 0 if path.with_name(f"{name[: number.start]}{0:0{width}}{name[number.stop :]}").is_file() else 1
    if total > _MOST_FILES:
        raise CheckpointError(f"{path}: expected at most {_MOST_FILES:,} shards, got one of {total:,} by its name.")
    every = range(first, first + total)
    return _present(path, [path.with_name(f"{name[: number.start]}{n:0{width}}{name[number.stop :]}") for n in every])


def _present(path: Path, files: list[Path]) -> list[Path]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: expected all {len(files)} shards of the checkpoint, got a folder without {_some(missing)}: "
            "download or copy the rest."
        )
    return files


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3:,} more"


def _in_folder(path: Path) -> list[Path]:
    files = sorted(file for file in path.iterdir() if file.is_file())
    names = {file.name: file for file in files}
    for name, what, advice in _FOLDERS:
        if name in names:
            raise wrong(path, what, advice)
    if len(files) > _MOST_FILES:
        raise wrong(path, f"a folder of {len(files):,} files", "name the file to check")
    indices = [file for file in files if file.name.endswith(_INDEX)]
    usual = [names[name + _INDEX] for name in _USUAL if name + _INDEX in names]
    if indices:
        return _indexed(_the_one(path, usual[:1] or indices))
    shards = [(file, match) for file in files if (match := _SHARD.fullmatch(file.name))]
    sets = {(match["stem"], match["total"], match["suffix"]): file for file, match in shards if match["total"] != "1"}
    readable = [file for file in files if file not in {file for file, _ in shards} and _is_checkpoint(file)]
    if sets and not any(file.name in _USUAL for file in readable):
        return files_of(_the_one(path, _preferred(sets.values())))
    usual = [names[name] for name in _USUAL if name in names]
    if not readable:
        folders = sorted(f.name for f in path.iterdir() if f.is_dir())
        inside = f"; its folders are {_some(folders)}" if folders else ""
        raise wrong(path, f"a folder without one{inside}", "name the file with the weights")
    return [_the_one(path, usual[:1] or readable)]


def _preferred(files: Iterable[Path]) -> list[Path]:
    """Return the safetensors files where there are any: a folder often has the same weights in both formats."""
    every = list(files)
    return [file for file in every if file.suffix == ".safetensors"] or every


def _is_checkpoint(path: Path) -> bool:
    try:
        return recognize(path) in ("safetensors", "zip", "legacy", "pickle")
    except (CheckpointError, OSError):
        return False


def _the_one(path: Path, files: list[Path]) -> Path:
    if len(files) > 1:
        raise wrong(path, f"a folder with {len(files)} ({_some([file.name for file in files])})", "name one of them")
    return files[0]
