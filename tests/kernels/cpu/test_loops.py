"""The C++ loops of every instruction set, without torch: on this processor, and on aarch64 under an emulator.

`loops_program.cpp` calls every loop on fixed inputs and writes the results. They must be those of the baseline of this
machine to a few roundings: instruction sets differ in whether a product and a sum are rounded together.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
SOURCES = Path(__file__).parents[3] / "src" / "gammabeta" / "kernels" / "cpu"
FLAGS = ("-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", f"-I{SOURCES}")
AARCH64, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"

Records = list[tuple[str, float, torch.Tensor]]

# Unit roundoff of the arithmetic, and the spacing of the stored values relative to themselves.
ROUNDOFF = {"float": 2.0**-24, "double": 2.0**-53, "bfloat16": 2.0**-24, "float16": 2.0**-24}
SPACING = {"float": 0.0, "double": 0.0, "bfloat16": 2.0**-7, "float16": 2.0**-10}
SUBNORMAL = 2.0**-24  # the smallest float16: the spacing near 0


def build(compiler: str, to: Path, *flags: str) -> Path:
    """Compile the program with the loops."""
    command = [compiler, *FLAGS, *flags, str(HERE / "loops_program.cpp"), str(SOURCES / "loops.cpp"), "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return to


def run(command: list[str], level: str, *arguments: str) -> bytes:
    environment = {**os.environ, "GAMMABETA_ISA": level}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def records(written: bytes) -> Records:
    """Name, scale and values of every record."""
    found, at = [], 0
    while at < len(written):
        name, n, scale = struct.unpack_from("<48sqd", written, at)
        at += struct.calcsize("<48sqd")
        values = torch.frombuffer(bytearray(written[at : at + 8 * n]), dtype=torch.float64)
        found.append((name.rstrip(b"\0").decode(), scale, values))
        at += 8 * n
    return found


def assert_same(got: Records, wanted: Records) -> None:
    """Every result is the wanted one to eight roundings of its scale; a scale of 0 asks for equality."""
    assert [name for name, *_ in got] == [name for name, *_ in wanted]
    for (name, scale, actual), (_, _, expected) in zip(got, wanted, strict=True):
        allowed = torch.zeros_like(expected)
        if scale:
            kind = next(word for word in name.replace(",", "").split() if word in ROUNDOFF)
            allowed = 8 * ROUNDOFF[kind] * scale + SPACING[kind] * expected.abs()
            allowed = allowed + (SUBNORMAL if kind == "float16" else 0.0)
        same = (actual == expected) | (actual.isnan() & expected.isnan())
        off = ~(same | ((actual - expected).abs() <= allowed))
        assert not off.any(), f"{name}: {actual[off][:4].tolist()}, expected {expected[off][:4].tolist()}"


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program for this machine."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler: c++")
    return build(compiler, tmp_path_factory.mktemp("native") / "loops", "-O1")


@pytest.fixture(scope="module")
def baseline(native: Path) -> Records:
    """What the baseline of this machine gives."""
    found = records(run([str(native)], "baseline"))
    assert len(found) > 1000
    return found


@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_this_processor(native: Path, baseline: Records, level: str) -> None:
    name = {"avx2": "AVX2", "avx512": "AVX-512"}[level]
    if run([str(native)], level, "name").decode().strip() != name:
        pytest.skip(f"needs a processor with {name}, this is {platform.machine()}")
    assert_same(records(run([str(native)], level)), baseline)


@pytest.mark.parametrize(("level", "name"), [("", "NEON"), ("baseline", "baseline")])
def test_aarch64(aarch64: list[str], baseline: Records, level: str, name: str) -> None:
    assert run(aarch64, level, "name").decode().strip() == name
    assert_same(records(run(aarch64, level)), baseline)


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the program for aarch64: cross-compiled and emulated, or native where this is one."""
    folder = tmp_path_factory.mktemp("aarch64")
    if platform.machine() in ("aarch64", "arm64"):
        return [str(build(shutil.which("c++") or "c++", folder / "loops", "-O3"))]
    for tool in (AARCH64, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: apt-get install g++-aarch64-linux-gnu qemu-user")
    return [EMULATOR, str(build(AARCH64, folder / "loops", "-O3", "-static"))]


@pytest.mark.parametrize("source", ["channel_norm.cpp", "checks.cpp", "running_statistics.cpp", "sample_norm.cpp"])
def test_what_includes_torch_compiles_for_aarch64(source: str) -> None:
    """Only its syntax and types: there is no torch of that architecture here to link with."""
    if shutil.which(AARCH64) is None:
        pytest.skip(f"needs {AARCH64}: apt-get install g++-aarch64-linux-gnu")
    include = Path(torch.__file__).parent / "include"
    version = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    command = [AARCH64, *FLAGS, "-fsyntax-only", version, f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]
    done = subprocess.run([*command, str(SOURCES / source)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
