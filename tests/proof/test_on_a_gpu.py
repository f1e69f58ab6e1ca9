"""`benchmarks/on_a_gpu.sh`: what it runs, in which order, and where it stops."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from gammabeta.benchmarks.subjects import MODULES

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "on_a_gpu.sh"
# Stands for Python: says which GPU there is, answers `gammabeta verify`, and notes all commands.
PYTHON = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
    *get_device_name*) echo "{gpu}" ;;
    *text_of*) echo report ;;
    *verify*json) echo '{found}'; exit {code} ;;
    *env*) echo environment ;;
esac
"""


def run(folder: Path, gpu: str, code: int) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    python, log = folder / "python", folder / "log"
    python.write_text(PYTHON.format(log=log, gpu=gpu, code=code, found=json.dumps({"passed": code == 0})))
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPT), str(folder / "out")], env={**os.environ, "PYTHON": str(python)}, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    return done, [line for line in log.read_text().splitlines() if line.startswith("-m gammabeta")]


def test_it_verifies_and_then_times_every_gpu_subject(tmp_path: Path) -> None:
    done, commands = run(tmp_path, "GPU", 0)
    assert done.returncode == 0, done.stderr
    assert [command.split()[2] for command in commands] == ["env", "verify", "bench"]
    named = [word for word in commands[-1].split()[3:] if word.startswith("gpu_")]
    assert named == [name for m in MODULES if (name := m.__name__.rpartition(".")[2]).startswith("gpu_")]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"env.txt", "verify.json", "verify.txt"}


@pytest.mark.parametrize(("gpu", "code", "ended", "commands"), [("", 0, 2, []), ("GPU", 1, 1, ["env", "verify"])])
def test_it_stops_without_a_gpu_and_after_a_failure(
    gpu: str, code: int, ended: int, commands: list[str], tmp_path: Path
) -> None:
    (tmp_path / "log").touch()
    done, ran = run(tmp_path, gpu, code)
    assert done.returncode == ended
    assert [command.split()[2] for command in ran] == commands
    assert "on_a_gpu.sh: " in done.stderr
