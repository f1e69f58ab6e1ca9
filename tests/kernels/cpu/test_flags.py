"""No kernel touches subnormal numbers where the values are ordinary: an Intel processor takes 150 cycles for each.

The processor's own flags say so: MXCSR's denormal operand and underflow, cleared before a call and read after it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.kernels.cpu import op_call
from tests.kernels.cpu.op_call import FINISHED, KERNELS, MODES, OVER_CHANNELS
from tests.threads import one_thread

from gammabeta.proof.call import ACTIVATIONS

DENORMAL_OPERAND, UNDERFLOW = 1 << 1, 1 << 4
SOURCE = """
#include <xmmintrin.h>
extern "C" void clear() { _mm_setcsr(_mm_getcsr() & ~0x3fu); }
extern "C" unsigned flags() { return _mm_getcsr() & 0x3fu; }
"""
# float16 has subnormal numbers below 6e-5, and a result that small is converted into one.
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if platform.machine() not in ("x86_64", "AMD64") or compiler is None:
        pytest.skip("needs an x86-64 processor and a C++ compiler")
    folder = tmp_path_factory.mktemp("flags")
    source, library = folder / "flags.cpp", folder / "flags.so"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture
def raised(processor: ctypes.CDLL) -> Iterator[tuple[Any, dict[str, int]]]:
    """Kernels that note, by the op's name, which flags their calls raised."""
    found: dict[str, int] = {}

    def noting(name: str, op: Any) -> Any:
        def call(*args: Any) -> Any:
            processor.clear()
            result = op(*args)
            found[name] = found.get(name, 0) | processor.flags()
            return result

        return call

    fields = [field.name for field in dataclasses.fields(KERNELS)]
    with one_thread():
        yield dataclasses.replace(KERNELS, **{name: noting(name, getattr(KERNELS, name)) for name in fields}), found


def test_the_flags_are_the_processor_s(processor: ctypes.CDLL) -> None:
    with one_thread():
        processor.clear()
        torch.full((64,), 1e-30) * torch.full((64,), 1e-10)
        assert processor.flags() & UNDERFLOW
        processor.clear()
        torch.full((64,), 1e-40) * torch.full((64,), 2.0)
        assert processor.flags() & DENORMAL_OPERAND
        processor.clear()
        torch.full((64,), 3.0) * torch.full((64,), 2.0)
        assert not processor.flags() & (UNDERFLOW | DENORMAL_OPERAND)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("mode", "activation"), [(m, a) for m in MODES for a in ACTIVATIONS if a is None or m in FINISHED]
)
def test_ordinary_values_raise_none(
    raised: tuple[Any, dict[str, int]], mode: str, activation: str | None, dtype: torch.dtype
) -> None:
    kernels, found = raised
    shape = (4, 6, 5, 7) if mode in OVER_CHANNELS else (9, 70)
    masks = (False, True) if mode in FINISHED else (False,)
    for residual, masked, last in itertools.product((False, True), masks, (False, True)):
        size = (shape[0], *shape[2:]) if mode in OVER_CHANNELS else shape[:-1]
        mask = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
        finish = {"residual": residual, "mask": mask, "activation": activation} if mode in FINISHED else {}
        if last and mode in OVER_CHANNELS:
            finish["layout"] = lambda t: t.to(memory_format=torch.channels_last)
        op_call._run(op_call.op_call(mode, shape, dtype, **finish), kernels)
    assert found
    wrong = {name: bits for name, bits in found.items() if bits & (DENORMAL_OPERAND | UNDERFLOW)}
    assert wrong == {}, f"{mode} {activation} {dtype}: flags {wrong} ({Path(__file__).name} has their names)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silu_raises_none_in_its_tail_either(processor: ctypes.CDLL, dtype: torch.dtype) -> None:
    """From e^z = 1.2e-38 on silu and its derivative are 0: dividing by an e^{−z} near the largest number takes long."""
    low, high = (-120.0, -80.0) if dtype == torch.float32 else (-760.0, -700.0)
    x = torch.linspace(low, high, 4 * 8 * 6 * 6, dtype=dtype).reshape(4, 8, 6, 6)
    mean, var = torch.zeros(8, dtype=dtype), torch.ones(8, dtype=dtype)
    rest = 1e-12, "silu", 0.0
    with one_thread():
        processor.clear()
        y = KERNELS.channel_apply_forward(x, mean, var, None, None, None, None, *rest)
        g, *_ = KERNELS.channel_norm_backward(torch.ones_like(x), x, None, None, None, None, mean, var, None, *rest)
        assert not processor.flags() & (UNDERFLOW | DENORMAL_OPERAND)
    exact = x.double() / (1 + torch.exp(-x.double()))
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1.1e-36 if dtype == torch.float32 else 2.5e-305)
    assert (y != 0).any()
    assert (y == 0).any()
    assert g.isfinite().all()
