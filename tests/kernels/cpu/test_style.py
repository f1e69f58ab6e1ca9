"""The style of the C++ sources: `.clang-format`, where clang-format is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = sorted(
    path
    for folder in (ROOT / "src" / "gammabeta" / "kernels" / "cpu", Path(__file__).parent)
    for path in folder.iterdir()
    if path.suffix in (".cpp", ".h")
)
OLDEST = 20  # the first that knows every option of .clang-format


def test_lines_fit() -> None:
    """120 columns, in characters: clang-format breaks no comment."""
    assert len(FILES) > 15
    long = [
        f"{path.name}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120
    ]
    assert not long


def test_clang_format() -> None:
    beside_python = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    tool = shutil.which("clang-format", path=beside_python)
    if tool is None:
        pytest.skip("needs clang-format: pip install clang-format")
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    version = re.search(r"version (\d+)", said)
    if version is None or int(version[1]) < OLDEST:
        pytest.skip(f"needs clang-format {OLDEST} or newer, got {said.strip()}")
    command = [tool, "--dry-run", "-Werror", *map(str, FILES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"run clang-format -i on these:\n{done.stderr[-3000:]}"
