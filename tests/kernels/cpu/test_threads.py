"""The same bits for any number of threads, and from run to run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.kernels.cpu.op_call import MODES, OVER_CHANNELS, by_kernel, mask_of, op_call
from tests.kernels.cpu.test_halves import by_halves
from torch import Tensor

from gammabeta import reference
from gammabeta.proof.call import Call


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# Large enough to be split, and unevenly: few samples with many positions, many with few, a single channel.
CHANNEL_SHAPES = [
    (8, 64, 56, 56), (2, 3, 512, 512), (4096, 512), (1, 1, 1024, 1030), (64, 33, 7, 7), (1, 128, 63, 65), (30_001, 5),
]  # fmt: skip
SAMPLE_SHAPES = [(4096, 768), (3, 300_001), (50_001, 7), (517, 1027)]


def cases() -> list[Any]:
    found = []
    for mode in MODES:
        for i, shape in enumerate(CHANNEL_SHAPES if mode in OVER_CHANNELS else SAMPLE_SHAPES):
            if mode in ("group", "instance") and len(shape) == 2:
                continue
            for layout in (Tensor.contiguous, channels_last) if mode in OVER_CHANNELS else (Tensor.contiguous,):
                dtype = torch.bfloat16 if i % 2 else torch.float32
                found.append(pytest.param(mode, shape, dtype, layout, id=f"{mode}-{shape}-{layout.__name__}"))
    return found


def large_call(mode: str, shape: tuple[int, ...], dtype: torch.dtype, layout: Any, finished: bool) -> Call:
    """With and without a finish, including a mask."""
    settings: dict[str, Any] = {"groups": 1 if shape[1] % 32 else 32} if mode == "group" else {}
    if finished and mode not in ("add_layer", "add_rms"):
        size = (shape[0], *shape[2:]) if mode in OVER_CHANNELS else shape[:-1]
        mask = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.8
        settings |= {"residual": True, "activation": "silu", "mask": mask}
    return op_call(mode, shape, dtype, layout=layout, **settings)


@pytest.mark.parametrize(("mode", "shape", "dtype", "layout"), cases())
def test_the_same_bits(mode: str, shape: tuple[int, ...], dtype: torch.dtype, layout: Any) -> None:
    for finished in (False, True):
        call = large_call(mode, shape, dtype, layout, finished)
        torch.set_num_threads(1)
        first = by_kernel(call).tensors()
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            for name, result in by_kernel(call).tensors().items():
                assert torch.equal(result, first[name]), f"{name} with {threads} threads, finished {finished}"


@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
def test_the_same_bits_of_the_halves(layout: Any) -> None:
    for shape in CHANNEL_SHAPES:
        call = large_call("channel_norm", shape, torch.float32, layout, True)
        torch.set_num_threads(1)
        first = by_halves([call]).tensors()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for name, result in by_halves([call]).tensors().items():
                assert torch.equal(result, first[name]), f"{name} of {shape} with {threads} threads"


def test_threads_work_at_once_from_several_python_threads() -> None:
    """Two Python threads in the kernels at once: calls share no state."""
    from concurrent.futures import ThreadPoolExecutor

    calls = [large_call("channel_norm", (8, 64, 28, 28), torch.float32, channels_last, True) for _ in range(2)]
    calls += [op_call("layer", (2048, 768), seed=1), op_call("group", (8, 64, 28, 28), groups=32)]
    alone = [by_kernel(call).tensors() for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for results, wanted in zip(pool.map(lambda c: by_kernel(c).tensors(), calls), alone, strict=True):
                assert all(torch.equal(results[name], wanted[name]) for name in wanted)


def test_a_test_of_bits_would_notice() -> None:
    """Sums of the same values in another order have other bits, so the comparison above can fail."""
    call = large_call("channel_norm", (8, 64, 56, 56), torch.float32, Tensor.contiguous, False)
    flipped = call.with_tensors(input=call.input.flip(0, 2, 3))
    forward, backward = (reference.channel_moments(c.input, mask_of(c)).mean for c in (call, flipped))
    assert not torch.equal(forward, backward)
    torch.testing.assert_close(forward, backward)
