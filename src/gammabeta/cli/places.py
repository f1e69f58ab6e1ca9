"""Where a target is, as code scanning wants it: in the repository, relative to its root."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes

from gammabeta.diagnostics.checkpoints.contents import printable

_INSTALLED = ("site-packages", "dist-packages")
# What a finding is shown at if its target is not in the repository, first to last.
_STAND_INS = ("pyproject.toml", "setup.cfg", "setup.py", "README.md", "README.rst", "README")


@dataclass(frozen=True)
class Place:
    """A line of a file in the repository.

    Attributes:
        path: the file, relative to the repository's root, with slashes.
        line: the line, from 1.
        end: the column behind the line's last character, from 1.
        outside: what the target is if it is not in the repository, which `path` then stands in for; None otherwise.
    """

    path: str
    line: int
    end: int
    outside: str | None = None

    @property
    def uri(self) -> str:
        """The path as a relative URI reference: all but letters, digits, "-", ".", "_", "~" and "/" is encoded."""
        return quote_from_bytes(os.fsencode(self.path), safe="/")


def repository_root(start: Path) -> Path:
    """Return the root of the git repository around a folder; the folder itself where there is none."""
    for folder in (start, *start.parents):
        if os.path.exists(folder / ".git"):  # a file in a worktree and a submodule
            return folder
    workspace = os.environ.get("GITHUB_WORKSPACE")  # a checkout without git has no .git
    if workspace and start.is_relative_to(Path(workspace).resolve()):
        return Path(workspace).resolve()
    return start


def place_of(file: str | None, line: int) -> Place:
    """Return where in the repository a target is to be shown.

    Args:
        file: the file in which it is defined, or the checkpoint itself; None if that is unknown.
        line: the line in the file.
    """
    here = Path.cwd().resolve()
    root = repository_root(here)
    path = None if file is None else here / Path(file)
    inside = None if path is None else _relative(path, root)
    if path is not None and inside is not None:
        return Place(inside, max(line, 1), _end(path, line))
    outside = "an unknown place" if file is None else _short(Path(file))
    for folder in (here, *here.parents):
        if not folder.is_relative_to(root):
            break
        for name in _STAND_INS:
            if (folder / name).is_file():
                at = _line_of_table(folder / name)
                stand_in = (folder / name).relative_to(root).as_posix()
                return Place(stand_in, at, _end(folder / name, at), outside)
    return Place(_STAND_INS[0], 1, 1, outside)


def _relative(path: Path, root: Path) -> str | None:
    """Return a path relative to the root; None if it is outside, or is a package that is installed in the root."""
    for candidate in (path.resolve(), Path(os.path.normpath(path))):  # GitHub does not follow links
        if candidate != root and candidate.is_relative_to(root):
            relative = candidate.relative_to(root)
            installed = any(part in _INSTALLED for part in relative.parts) or _in_environment(candidate, root)
            return None if installed else relative.as_posix()
    return None


def _in_environment(path: Path, root: Path) -> bool:
    environment = Path(sys.prefix).resolve()
    return environment != root and environment.is_relative_to(root) and path.is_relative_to(environment)


def _short(file: Path) -> str:
    """Return a package's path from its root, or a file's name: where it is on this machine is nobody's business."""
    parts = file.parts
    at = max((i for i, part in enumerate(parts) if part in _INSTALLED), default=None)
    return printable(file.name if at is None else "/".join(parts[at + 1 :]))


def _line_of_table(path: Path) -> int:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 1
    return next((i for i, line in enumerate(lines, 1) if line.strip().startswith("[tool.gammabeta")), 1)


def _end(path: Path, line: int) -> int:
    """Return the column behind a line's last character; 1 if the file has no such line of text."""
    if path.suffix not in (".py", ".toml", ".cfg", ".md", ".rst"):
        return 1
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return next((len(text.rstrip("\r\n")) + 1 for i, text in enumerate(file, 1) if i == line), 1)
    except OSError:
        return 1
