"""Every instruction set of this machine: one binary has them all, and GAMMABETA_ISA chooses a lower one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
# The value of the variable, and the name: from the lowest up. How many of them this machine has.
if platform.machine() in ("aarch64", "arm64"):
    LEVELS, HERE = {"baseline": "baseline", "neon": "NEON"}, 2
else:
    LEVELS = {"baseline": "baseline", "avx2": "AVX2", "avx512": "AVX-512"}
    HERE = {"AVX512": 3, "AVX2": 2}.get(torch.backends.cpu.get_cpu_capability(), 1)

# Where instruction sets may differ: arithmetic in every dtype, the ends of rows, values that are not finite.
CASES = (
    "tests/kernels/cpu/test_finish.py", "tests/kernels/cpu/test_dtypes.py::test_input_residual_and_parameters",
    "tests/kernels/cpu/test_flags.py::test_ordinary_values_raise_none",
    "tests/kernels/cpu/test_sizes.py::test_widths", "tests/kernels/cpu/test_layouts.py::test_expanded",
    "tests/kernels/cpu/test_layouts.py::test_nothing_is_written_beside_the_output",
    "tests/kernels/cpu/test_values.py::test_what_is_not_finite_stays_in_its_statistic",
    "tests/kernels/cpu/test_values.py::test_large_in_16_bits", "tests/kernels/cpu/test_halves.py::test_moments",
)  # fmt: skip


def with_level(level: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"GAMMABETA_ISA": level, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("level", LEVELS)
def test_kernels_of(level: str) -> None:
    if list(LEVELS).index(level) >= HERE:
        pytest.skip(f"this machine has no {level}")
    script = "import gammabeta, torch; print(torch.ops.gammabeta.cpu_instruction_set())"
    said = with_level(level, "-c", script)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == LEVELS[level]
    if list(LEVELS).index(level) == HERE - 1:
        return  # this one runs without the variable, and so in all other tests
    done = with_level(level, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *CASES)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
