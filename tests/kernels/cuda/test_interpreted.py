"""Every kernel, interpreted on small CPU tensors, equals the reference in float64, and gives the same bits again.

Runs with TRITON_INTERPRET=1, for every commit. The conformance suite can be interpreted too (`TRITON_INTERPRET=1 pytest
tests/conformance`), at some fifty times the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.kernels.cpu.op_call import OVER_CHANNELS, OVER_LAST, Results, assert_equals_reference, by_kernel, op_call
from tests.kernels.cpu.test_halves import by_halves, split
from tests.routes import triton_instead_of_kernels
from torch import Tensor

from gammabeta.kernels.cuda import launch as triton_launch
from gammabeta.kernels.cuda.launch import Launch
from gammabeta.proof.call import Call
from gammabeta.proof.interpreter import INTERPRETED
from gammabeta.proof.operations import DTYPES
from gammabeta.proof.random_call import random_call
from gammabeta.proof.topics import values

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 runs these")

# So small that a few values already need several tiles, splits, ranges of rows and waves of programs.
SPLIT = Launch(
    multiprocessors=3, waves=2, tile=32, narrow=8, applied=2, fused_bytes=0, row=64, row_tile=32, row_waves=1
)


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.fixture(autouse=True)
def _interpreted() -> Iterator[None]:
    with triton_instead_of_kernels():
        yield


@pytest.fixture(params=["whole", "split"])
def launch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Use the choices of a GPU, with one program for small tensors, and choices that cut them like large ones."""
    if request.param == "split":
        monkeypatch.setattr(triton_launch, "LAUNCH", SPLIT)
    return request.param


def a_call(mode: str, shape: tuple[int, ...], dtype: torch.dtype, finished: bool, layout: Any, **settings: Any) -> Call:
    """Return a plain call; or one with a mask, a residual and an activation that depends on the dtype."""
    if finished:
        size = (shape[0], *shape[2:]) if mode in OVER_CHANNELS else shape[:-1]
        mask = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.7
        mask.view(-1)[:1] = False  # a shift may only be taken from a value that counts
        settings |= {"residual": True, "mask": mask, "activation": "gelu" if dtype == torch.float64 else "silu"}
    return op_call(mode, shape, dtype, layout=layout, **settings)


def cases() -> list[Any]:
    found = []
    for mode in (*OVER_CHANNELS, *OVER_LAST):
        for layout in (Tensor.contiguous, channels_last) if mode in OVER_CHANNELS else (Tensor.contiguous,):
            for dtype in DTYPES:
                for finished in (False, True) if not mode.startswith("add") else (False,):
                    name = f"{mode}-{layout.__name__}-{str(dtype)[6:]}-{finished}"
                    found.append(pytest.param(mode, dtype, finished, layout, id=name))
    return found


def shape_of(mode: str, launch: str) -> tuple[int, ...]:
    if mode in OVER_LAST:
        return (5, 70) if launch == "split" else (7, 37)  # longer and shorter than the rows that fit into registers
    if mode in ("group", "instance"):
        return (1, 3, 65) if launch == "split" else (2, 6, 9)
    return (3, 7, 37)


@pytest.mark.parametrize(("mode", "dtype", "finished", "layout"), cases())
def test_kernels_equal_the_reference(
    mode: str, dtype: torch.dtype, finished: bool, layout: Callable[[Tensor], Tensor], launch: str
) -> None:
    settings = {"groups": 1} if mode == "group" and launch == "split" else {}
    call = a_call(mode, shape_of(mode, launch), dtype, finished, layout, **settings)
    first = by_kernel(call)
    assert_equals_reference(call, launch, first)
    assert_the_same_bits(first, by_kernel(call))


def assert_the_same_bits(first: Results, second: Results) -> None:
    for name, result in second.tensors().items():
        assert torch.equal(result, first.tensors()[name]), f"{name}: other bits in the second run"


@pytest.mark.parametrize("shape", [(5, 4, 20), (3, 4, 48), (3, 8, 34)], ids=str)
@pytest.mark.parametrize("mode", OVER_CHANNELS)
def test_sizes_with_common_factors(mode: str, shape: tuple[int, ...], launch: str) -> None:
    """Several values of one lane are loaded at once, and all exist or none. Samples leave a remainder."""
    for layout in (Tensor.contiguous, channels_last):
        for finished in (False, True):
            for groups in (2, 4) if mode == "group" else (None,):
                call = a_call(mode, shape, torch.float32, finished, layout, mean=100.0, groups=groups)
                assert_equals_reference(call, f"{layout.__name__}, groups {groups}")


@pytest.mark.parametrize("shape", [(3, 1), (1, 9), (4, 5, 1), (2, 3, 1, 7), (2, 1, 6), (2, 4, 3, 2, 2)], ids=str)
def test_channel_norms_of_every_rank(shape: tuple[int, ...], launch: str) -> None:
    for layout in (Tensor.contiguous, channels_last):
        if shape[0] * torch.Size(shape[2:]).numel() > 1:
            assert_equals_reference(op_call("channel_norm", shape, layout=layout))
        assert_equals_reference(op_call("channel_apply", shape, layout=layout))


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu"])
@pytest.mark.parametrize("mode", ["channel_norm", "group", "layer"])
def test_activations(mode: str, activation: str) -> None:
    """Values on both sides of every kink, and a residual in another dtype and layout than x."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        call = op_call(
            mode, (3, 6, 5), dtype, residual=True, activation=activation, activation_slope=0.2, scale=4.0,
            dtypes={"residual": torch.float16},
        )  # fmt: skip
        residual = call.tensors["residual"]
        assert residual is not None
        assert_equals_reference(call.with_tensors(residual=residual.transpose(1, 2).contiguous().transpose(1, 2)))


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_that_are_absent_or_of_another_dtype(weight: bool, bias: bool, launch: str) -> None:
    for mode in ("channel_norm", "channel_apply", "group", "layer", "add_layer"):
        wide = {"weight": torch.float64, "bias": torch.float32}
        shape = shape_of(mode, launch)
        assert_equals_reference(op_call(mode, shape, torch.bfloat16, weight=weight, bias=bias, dtypes=wide))
        narrow = dict.fromkeys(("weight", "bias", "residual", "running_mean", "running_var"), torch.bfloat16)
        assert_equals_reference(op_call(mode, shape, torch.float64, weight=weight, bias=bias, dtypes=narrow))


def test_parameters_and_statistics_that_are_strided_or_expanded(launch: str) -> None:
    for mode in (*OVER_CHANNELS, "layer", "add_layer"):
        call = op_call(mode, shape_of(mode, launch))
        strided = {n: t for n, t in call.tensors.items() if t is not None and t.ndim == 1}
        assert "weight" in strided
        for spread in (lambda t: t.repeat_interleave(2)[::2], lambda t: t[:1].expand(t.shape)):
            assert_equals_reference(call.with_tensors(**{n: spread(t) for n, t in strided.items()}), mode)


def test_halves_of_strided_statistics() -> None:
    """Statistics as views: a process slices them from what all have sent."""
    call = op_call("channel_norm", (4, 5, 6))
    x, g, weight = call.input, call.gradients[0], call.tensors["weight"]
    mean, var, count = torch.randn(3, 5, 2)[..., 0].unbind()
    var, count = var.abs(), torch.full((5, 2), 24)[:, 0]

    def results(*statistics: Tensor) -> list[Tensor]:
        mean, var, count = statistics
        finish = 1e-5, "none", 0.0
        y = torch.ops.gammabeta.channel_apply_forward(x, mean, var, weight, None, None, None, *finish)
        sums = torch.ops.gammabeta.channel_backward_reduce(g, x, weight, None, None, None, mean, var, *finish)
        spread = [s.repeat_interleave(2)[::2] for s in sums]
        back = torch.ops.gammabeta.channel_backward_apply(
            g, x, weight, None, None, None, mean, var, *(sums if mean.is_contiguous() else spread), count, *finish
        )
        return [y, *sums, *back]

    for got, wanted in zip(
        results(mean, var, count), results(*(t.contiguous() for t in (mean, var, count))), strict=True
    ):
        assert torch.equal(got, wanted)


def test_variances_of_which_a_root_has_no_reciprocal() -> None:
    """1/√0 is infinite and 1/√∞ is 0, not NaN, as a plain Newton step would return for both."""
    x = torch.tensor([[1.0, 1.0, 1.0, 4.0]])
    mean, var = torch.zeros(4), torch.tensor([0.0, torch.inf, torch.nan, 4.0])
    y = torch.ops.gammabeta.channel_apply_forward(x, mean, var, None, None, None, None, 0.0, "none", 0.0)
    torch.testing.assert_close(y, torch.tensor([[torch.inf, 0.0, torch.nan, 2.0]]), equal_nan=True)


@pytest.mark.parametrize("masked", [False, True])
def test_large_means(masked: bool, launch: str) -> None:
    """Mean 10⁶, spread 1 in float32. Masked-out values are ones from which no shift may be taken."""
    for mode in ("channel_norm", "group", "layer"):
        shape = (3, 4, 40) if mode != "layer" else (6, 60)
        mask = None
        if masked and mode != "layer":
            mask = torch.ones(3, 40, dtype=torch.bool)
            mask[0, :20] = mask[2, -3:] = False
        call = op_call(mode, shape, mean=1e6, std=1.0, mask=mask)
        if mask is not None:
            x = call.input.clone()
            x.movedim(1, -1)[~mask] = torch.inf
            call = call.with_tensors(input=x)
        layouts = (Tensor.contiguous, channels_last) if mode != "layer" else (Tensor.contiguous,)
        for layout in layouts:
            assert_equals_reference(call.with_tensors(input=layout(call.input)), f"mean 1e6, {layout.__name__}")


def test_a_shift_that_is_off() -> None:
    """The first value of every channel is 10⁴ standard deviations away from all others, without cancellation."""
    call = op_call("channel_norm", (4, 3, 50), mean=0.0)
    x = call.input.clone()
    x[0, :, 0] = 1e4
    assert_equals_reference(call.with_tensors(input=x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_halves(masked: bool, dtype: torch.dtype, launch: str) -> None:
    """Halves of one process, and of three of which one is empty."""
    mask = torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
    for layout in (Tensor.contiguous, channels_last):
        call = op_call("channel_norm", (6, 5, 9), dtype, residual=True, mask=mask, activation="silu", layout=layout)
        first = by_halves([call])
        assert_equals_reference(call, "by halves", first)
        assert_the_same_bits(first, by_halves([call]))
        assert_equals_reference(call, "on three ranks", by_halves(split(call, (2, 0, 4))))


def test_nothing_counts(launch: str) -> None:
    """Statistics and gradients are 0, as in the reference."""
    for mode, shape in (("channel_norm", (3, 4, 9)), ("group", (2, 6, 9)), ("layer", (4, 70))):
        size = (shape[0], *shape[2:]) if mode != "layer" else shape[:-1]
        assert_equals_reference(op_call(mode, shape, mask=torch.zeros(size, dtype=torch.bool)))


@pytest.mark.parametrize("op", ["batch_norm", "group_norm", "layer_norm", "rms_norm"])
def test_what_is_not_finite_stays_in_its_statistic(op: str, launch: str) -> None:
    for case in values.cases(op, torch.float32):
        if case.name.startswith(("one-nan", "one-inf")):
            case.holds(case.make(0), "interpreted")


def test_a_test_of_bits_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in another order have other bits, as another partition of the same tensor shows."""
    call = random_call("batch_norm", (4, 3, 300), training=True, running=False)
    first = by_kernel(call)
    monkeypatch.setattr(triton_launch, "LAUNCH", SPLIT)
    with pytest.raises(AssertionError, match="other bits"):
        assert_the_same_bits(first, by_kernel(call))
