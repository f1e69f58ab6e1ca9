"""Every kernel compiles for GPUs that need not be there, and keeps its values in registers.

The interpreter takes what the compiler refuses, so that it alone proves too little. Shapes are those for which the cuts
are made: nothing is computed, tensors are fake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.cuda.launches import Launch, taken_down
from tests.interpreter import INTERPRETED
from torch._subclasses import FakeTensorMode

from gammabeta.kernels.triton_ops import IMPLEMENTATIONS, KERNELS

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 compiles nothing")

# The least that is served, and an H200's; bytes of stack of a thread: some are put aside outside of a loop.
STACK = {80: 16, 90: 0}


def channel_norm(
    shape: tuple[int, ...], dtype: torch.dtype, last: bool, residual: bool, masked: bool, activation: str
) -> None:
    x = torch.empty(shape, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    weight, bias = torch.empty(shape[1]), torch.empty(shape[1])
    skip = torch.empty_like(x) if residual else None
    mask = torch.empty(shape[0], *shape[2:], dtype=torch.bool) if masked else None
    finish = 1e-5, activation, 0.0
    y, *statistics = IMPLEMENTATIONS["channel_norm_forward"](x, weight, bias, skip, mask, *finish)
    IMPLEMENTATIONS["channel_norm_backward"](torch.empty_like(y), x, weight, bias, skip, mask, *statistics, *finish)


def sample_norm(
    shape: tuple[int, ...], groups: int | None, dtype: torch.dtype, last: bool, finished: bool, center: bool = True
) -> None:
    """Without groups over the last axis."""
    x = torch.empty(shape, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    axes = (1, 1, groups) if groups else (len(shape) - 1, 1, 1)
    channels = shape[1] if groups else shape[-1]
    weight, bias = torch.empty(channels), torch.empty(channels) if center else None
    skip = torch.empty_like(x) if finished else None
    size = (shape[0], *shape[2:]) if groups else shape[:-1]
    mask = torch.empty(size, dtype=torch.bool) if finished else None
    finish = 1e-5, "gelu" if finished else "none", 0.0, center
    y, *statistics = IMPLEMENTATIONS["sample_norm_forward"](x, *axes, weight, bias, skip, mask, *finish)
    IMPLEMENTATIONS["sample_norm_backward"](
        torch.empty_like(y), x, *axes, weight, bias, skip, mask, *statistics, *finish
    )  # fmt: skip


def add_sample_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = torch.empty(shape, dtype=dtype), torch.empty(shape[-1])
    y, total, *statistics = IMPLEMENTATIONS["add_sample_norm_forward"](x, x.clone(), 1, weight, weight, 1e-5, True)
    IMPLEMENTATIONS["add_sample_norm_backward"](y, y, total, 1, weight, weight, *statistics, 1e-5, True)


BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
CALLS: dict[str, Callable[[], None]] = {
    "batch norm": lambda: channel_norm((256, 256, 56, 56), BF16, False, False, False, "none"),
    "batch norm, residual, relu": lambda: channel_norm((256, 256, 56, 56), BF16, True, True, False, "relu"),
    "batch norm, all": lambda: channel_norm((256, 256, 56, 56), F32, True, True, True, "gelu"),
    "batch norm of small planes": lambda: channel_norm((256, 2048, 7, 7), BF16, False, True, False, "relu"),
    "batch norm in one kernel": lambda: channel_norm((2, 64, 4, 4), BF16, True, True, True, "silu"),
    "batch norm, float64": lambda: channel_norm((8, 64, 7, 7), F64, False, True, True, "leaky_relu"),
    "layer norm": lambda: sample_norm((16384, 4096), None, BF16, False, False),
    "layer norm, all": lambda: sample_norm((16384, 4096), None, F32, False, True),
    "rms norm": lambda: sample_norm((16384, 8192), None, F32, False, False, center=False),
    "layer norm of long rows": lambda: sample_norm((3, 300_001), None, F32, False, False),
    "add layer norm": lambda: add_sample_norm((16384, 4096), BF16),
    "group norm": lambda: sample_norm((256, 256, 56, 56), 32, BF16, False, False),
    "group norm, channels_last": lambda: sample_norm((256, 256, 56, 56), 32, BF16, True, False),
    "group norm, all": lambda: sample_norm((256, 256, 56, 56), 32, F32, False, True),
    "instance norm of few": lambda: sample_norm((1, 16, 512, 512), 16, F32, False, True),
}


def launches_of(call: Callable[[], None], patch: pytest.MonkeyPatch) -> list[Launch]:
    with FakeTensorMode(), taken_down(patch) as launches:
        call()
    return launches


@pytest.mark.parametrize("capability", STACK)
@pytest.mark.parametrize("name", CALLS)
def test_compiles_without_spilling(name: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for launch in launches_of(CALLS[name], monkeypatch):
        resources = launch.resources(capability)
        assert resources["STACK"] <= STACK[capability], f"{launch.name} spills: {resources}"
        # The most that a block of so many threads may have for one to run at all.
        assert resources["REG"] * 32 * launch.warps <= 65536, f"{launch.name}: {resources}"


def test_every_kernel_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: set[Any] = {launch.kernel for call in CALLS.values() for launch in launches_of(call, monkeypatch)}
    assert {k.fn.__name__ for k in KERNELS} == {k.fn.__name__ for k in launched}
