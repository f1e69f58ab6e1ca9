"""Checkpoints of several files: an index, numbered shards, or a folder that holds them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gammabeta.diagnostics.checkpoints.contents import CheckpointError
from gammabeta.diagnostics.checkpoints.recognize import read_index, recognize, wrong

_SHARD = re.compile(r"(?P<stem>.*?)[-_.]?(?P<number>\d{1,6})-of-(?P<total>\d{1,6})(?P<suffix>\.\w+)", re.DOTALL)
_INDEX = ".index.json"
# What the model itself is called in folders that also hold the state of its training.
_USUAL = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "model.pt", "model.pth")
# What the shards of one checkpoint are called where nothing but their names says so, as Hugging Face writes them.
_USUAL_STEMS = ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model", "consolidated")
_USUAL_WIDTH = 5
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


@dataclass(frozen=True)
class Files:
    """The files of a checkpoint.

    Attributes:
        paths: the files.
        named: the one that was asked for, where only the numbers in the names say that the others belong to it: then
            they are shards only if no tensor is in two of them. None where an index says it.
        note: what is to be said of the choice, or "".
    """

    paths: tuple[Path, ...]
    named: Path | None = None
    note: str = ""


def files_of(path: Path) -> Files:
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
    return Files((path,))


def alone(folder: Path, files: Files, key: str) -> Files:
    """Return the file that was asked for, where another with its name and another number has the same tensor.

    Raises:
        CheckpointError: none was asked for, but the folder.
    """
    assert files.named is not None
    if folder.is_dir():
        raise several(folder, list(files.paths))
    others = [file.name for file in files.paths if file != files.named]
    if len(others) == 1:
        what = f"{others[0]} has tensors of the same names, such as {key}, so it is another checkpoint and no shard"
    else:
        what = (
            f"the other {len(others)} files of this name have tensors of the same names, such as {key}, so they are "
            "other checkpoints and no shards"
        )
    return Files((files.named,), note=f"only {files.named.name} was read: {what} of this one")


def _indexed(path: Path) -> Files:
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
    return Files(_present(path, [path.parent / name for name in sorted(set(names))]))


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\\" not in name and "\0" not in name


def _numbered(path: Path, shard: re.Match[str]) -> Files:
    """Return all shards of which one is given: those of its index, or those with the same name and total."""
    index = path.with_name(f"{shard['stem']}{shard['suffix']}{_INDEX}")
    if index.is_file():
        indexed = _indexed(index)
        if path in indexed.paths:
            return indexed
    total, own = int(shard["total"]), int(shard["number"])
    number = slice(*shard.span("number"))
    name, width = path.name, len(shard["number"])
    usual = shard["stem"].partition(".")[0] in _USUAL_STEMS and width >= _USUAL_WIDTH
    if total > _MOST_FILES and usual:
        raise CheckpointError(f"{path}: expected at most {_MOST_FILES:,} shards, got one of {total:,} by its name.")
    if total > _MOST_FILES or own > total:
        return Files((path,))
    first = 0 if path.with_name(f"{name[: number.start]}{0:0{width}}{name[number.stop :]}").is_file() else 1
    every = range(first, first + total)
    paths = [path.with_name(f"{name[: number.start]}{n:0{width}}{name[number.stop :]}") for n in every]
    missing = [file.name for file in paths if not file.is_file()]
    if (missing and not usual) or path not in paths:
        return Files(
            (path,),
            note=f"only {name} was read: of the {total} files that its name counts, {_some(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there, and no index says that they are shards of one "
            "checkpoint",
        )
    return Files(_present(path, paths), path)


def _present(path: Path, files: list[Path]) -> tuple[Path, ...]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: expected all {len(files)} shards of the checkpoint, got a folder without {_some(missing)}: "
            "download or copy the rest."
        )
    return tuple(files)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3:,} more"


def _in_folder(path: Path) -> Files:
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
        found = files_of(_the_one(path, _preferred(sets.values())))
        others = [file for file, _ in shards if file.suffix == found.paths[0].suffix]
        if found.note and len(others) > 1:
            raise several(path, others)
        return found
    usual = [names[name] for name in _USUAL if name in names]
    if not readable:
        folders = sorted(f.name for f in path.iterdir() if f.is_dir())
        inside = f"; its folders are {_some(folders)}" if folders else ""
        raise wrong(path, f"a folder without one{inside}", "name the file with the weights")
    return Files((_the_one(path, usual[:1] or readable),))


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
        raise several(path, files)
    return files[0]


def several(folder: Path, files: list[Path]) -> CheckpointError:
    """Make the error for a folder with several checkpoints."""
    return wrong(folder, f"a folder with {len(files)} ({_some([file.name for file in files])})", "name one of them")
