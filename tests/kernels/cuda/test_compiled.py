"""Every kernel compiles for GPUs that need not be present, and memory, not instructions, limits its loops.

The interpreter accepts code that the compiler refuses, so interpreting alone proves too little. The shapes are those
for which the launch choices were made. Nothing is computed: tensors are fake. CUDA_REPORT=1 prints the table in
`benchmarks/results/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.kernels.cuda.assembly import loops, whole
from tests.kernels.cuda.launches import Launch, taken_down
from torch._subclasses import FakeTensorMode

from gammabeta.kernels.cuda.ops import IMPLEMENTATIONS, KERNELS
from gammabeta.proof.interpreter import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 compiles nothing")

CAPABILITIES = (80, 90)  # the lowest supported, and that of an H200


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
    """Return the launches of norms over the last axis, without groups."""
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
    "batch norm, channels_last": lambda: channel_norm((256, 256, 56, 56), BF16, True, False, False, "none"),
    "batch norm, residual, relu": lambda: channel_norm((256, 256, 56, 56), BF16, True, True, False, "relu"),
    "batch norm, float32": lambda: channel_norm((256, 256, 56, 56), F32, True, False, False, "none"),
    "batch norm of 14 × 14": lambda: channel_norm((256, 1024, 14, 14), BF16, False, False, False, "none"),
    "batch norm, all": lambda: channel_norm((256, 256, 56, 56), F32, True, True, True, "gelu"),
    "batch norm of small planes": lambda: channel_norm((256, 2048, 7, 7), BF16, False, True, False, "relu"),
    "batch norm in one kernel": lambda: channel_norm((2, 64, 4, 4), BF16, True, True, True, "silu"),
    "batch norm, float64": lambda: channel_norm((8, 64, 7, 7), F64, False, True, True, "leaky_relu"),
    "layer norm": lambda: sample_norm((16384, 4096), None, BF16, False, False),
    "layer norm of short rows": lambda: sample_norm((131_072, 768), None, BF16, False, False),
    "layer norm, all": lambda: sample_norm((16384, 4096), None, F32, False, True),
    "rms norm": lambda: sample_norm((16384, 8192), None, F32, False, False, center=False),
    "layer norm of long rows": lambda: sample_norm((3, 300_001), None, F32, False, False),
    "layer norm of long rows of eights": lambda: sample_norm((64, 20_008), None, BF16, False, False),
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


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", CALLS)
def test_compiles_and_loops_in_registers(name: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for launch in launches_of(CALLS[name], monkeypatch):
        resources, code = launch.resources(capability), launch.code(capability)
        # The most registers with which a block of that many threads can run at all.
        assert resources["REG"] * 32 * launch.warps <= 65536, f"{launch.name}: {resources}"
        # Some bytes may be spilled once per program, not in every turn of a loop.
        assert resources["STACK"] <= 64, f"{launch.name} spills: {resources}"
        # No atomic additions: sums in a fixed order have the same bits from run to run.
        assert not {i.name for i in code} & {"ATOM", "ATOMG", "ATOMS", "RED", "REDG"}, f"{launch.name} has atomics"
        for passage in loops(code):
            assert not passage.of("LDL") + passage.of("STL"), f"{launch.name} spills in a loop: {resources}"


@pytest.mark.parametrize("name", CALLS)
def test_compiles_where_any_size_is_1(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument of 1 is a plain number, which has no `.to` and no known divisibility."""
    for launch in launches_of(CALLS[name], monkeypatch):
        for unit in {1, launch.arguments.get("UNIT", 1)}:
            units = {"UNIT": unit} if "UNIT" in launch.arguments else {}
            replace(launch.with_sizes_of_1(), arguments=launch.with_sizes_of_1().arguments | units).compiled(90)


IN_16_BITS = [
    "batch norm", "batch norm, channels_last", "batch norm, residual, relu", "batch norm of 14 × 14",
    "batch norm of small planes", "layer norm", "layer norm of short rows", "add layer norm", "group norm",
    "group norm, channels_last",
]  # fmt: skip
IN_32_BITS = ["batch norm, float32", "batch norm, all", "layer norm, all", "rms norm", "group norm, all"]


@pytest.mark.parametrize("name", IN_16_BITS + IN_32_BITS)
def test_instructions_take_less_time_than_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every loop over a tensor. Welford's update of each value, for example, would take 1.8 times as long to issue
    as the values take to load, and no launch choice would help."""
    for launch in large(launches_of(CALLS[name], monkeypatch)):
        passages = loops(launch.code(90)) or [whole(launch.code(90))]
        if launch.name == "channel_moments_kernel" and name != "batch norm, all":
            passages = passages[:1]  # the other loop handles the last tiles
        for passage in passages:
            assert passage.issue_share < 1, f"{launch.name}: {passage.issue_share:.2f}"
            if launch.name.startswith("channel_") and launch.arguments["mask"] is None:
                # Every lane of statistics is in one thread, which does not wait for others.
                assert not passage.of("SHFL") + passage.of("BAR") + passage.of("LDS"), launch.name


@pytest.mark.parametrize(
    ("name", "width"), [*((name, 16) for name in IN_16_BITS[:3]), ("batch norm of 14 × 14", 8), *(
        (name, 16) for name in ("layer norm", "add layer norm", "group norm", "group norm, channels_last")
    )],
)  # fmt: skip
def test_tensors_are_read_and_written_in_wide_accesses(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight 16-bit values at once; four where planes of 14 × 14 begin every 392 bytes."""
    for launch in large(launches_of(CALLS[name], monkeypatch)):
        for passage in loops(launch.code(90)) or [whole(launch.code(90))]:
            # Narrower accesses are parameters and statistics, of 32 bits and more.
            assert not {1, 2} & (passage.of("LDG") + passage.of("STG")).keys(), launch.name
            assert passage.of("LDG")[width], f"{launch.name} loads {passage.of('LDG')}"
            assert launch.name.endswith(("moments_kernel", "sums_kernel")) or passage.of("STG")[width] or (
                launch.name.startswith("group_") and not passage.of("STG")  # the first of its loops
            ), f"{launch.name} stores {passage.of('STG')}"  # fmt: skip


def test_long_rows_are_read_and_written_in_wide_accesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A multiple of 8 but not of 16: Triton only detects the latter on its own."""
    for launch in large(launches_of(CALLS["layer norm of long rows of eights"], monkeypatch)):
        widths = {i.width for i in launch.code(90) if i.name in ("LDG", "STG")}
        assert max(widths) == 16, f"{launch.name}: {widths}"
        assert min(widths) >= 4, f"{launch.name}: {widths}"


def large(launches: list[Launch]) -> list[Launch]:
    """Return the launches over whole tensors, not those over partial results."""
    return [launch for launch in launches if launch.name not in ("channel_merge_kernel", "sum_partials_kernel")]


def report() -> list[str]:
    """Return a table of what the kernels' machine code needs of an H200's multiprocessor."""
    lines = [
        "| | kernel | registers | warps at once | loads | KB in flight | issue / memory |",
        "|---|---|" + "--:|" * 5,
    ]
    for name in IN_16_BITS + IN_32_BITS:
        with pytest.MonkeyPatch.context() as patch:
            launches = large(launches_of(CALLS[name], patch))
        for launch in launches:
            registers = launch.resources(90)["REG"]
            # A thread gets registers by 8; a multiprocessor has 65,536 registers and 64 warps.
            blocks = min(64 // launch.warps, 65536 // (-(-registers // 8) * 8 * 32 * launch.warps))
            warps = blocks * launch.warps
            for passage in loops(launch.code(90)) or [whole(launch.code(90))]:
                loads = " + ".join(f"{count} × {width} B" for width, count in sorted(passage.of("LDG").items()))
                lines.append(
                    f"| {name} | {launch.name.removesuffix('_kernel')} | {registers} | {warps} | {loads} | "
                    f"{passage.loaded * 32 * warps / 1024:.0f} | {passage.issue_share:.2f} |"
                )
    return lines


def test_every_kernel_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: set[Any] = {launch.kernel for call in CALLS.values() for launch in launches_of(call, monkeypatch)}
    assert {k.fn.__name__ for k in KERNELS} == {k.fn.__name__ for k in launched}
