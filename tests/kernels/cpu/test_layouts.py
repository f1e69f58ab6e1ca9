"""Memory layouts: x, residual and gradients each in any layout, not dense, not aligned, expanded."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from tests.kernels.cpu.op_call import (
    FINISHED,
    MODES,
    OVER_CHANNELS,
    assert_equals_reference,
    by_kernel,
    mask_of,
    op_call,
    sample_axes,
    with_layouts,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gammabeta.proof.call import Call
from gammabeta.proof.operations import ADD_OPS, DTYPES

Layout = Callable[[Tensor], Tensor]


def channels_last(t: Tensor) -> Tensor:
    """Make the channels innermost, for any number of axes."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(t: Tensor) -> Tensor:
    """Take every second element of twice as many, in the innermost axis."""
    return t.repeat_interleave(2, dim=-1)[..., ::2]


def spread(t: Tensor) -> Tensor:
    """Take a part of a larger tensor in its first two axes: rows are dense, the tensor is not."""
    larger = t.new_full((t.shape[0] + 1, t.shape[1] + 2, *t.shape[2:]), 9.0)
    larger[1:, 1:-1] = t
    return larger[1:, 1:-1]


def misaligned(t: Tensor) -> Tensor:
    """Make it dense, one element past an aligned address."""
    base = t.new_empty(t.numel() + 1)
    base[1:] = t.reshape(-1)
    return base[1:].view(t.shape)


def misaligned_channels_last(t: Tensor) -> Tensor:
    return misaligned(t.movedim(1, -1)).movedim(-1, 1)


LAYOUTS: dict[str, Layout] = {
    "contiguous": Tensor.contiguous, "channels_last": channels_last, "transposed": transposed, "sliced": sliced,
    "spread": spread, "misaligned": misaligned, "misaligned channels_last": misaligned_channels_last,
}  # fmt: skip


def shapes(mode: str) -> list[tuple[int, ...]]:
    if mode in OVER_CHANNELS:
        return [(3, 6, 5, 7), (3, 6, 37), (2, 6, 3, 2, 5), (19, 6)]
    return [(3, 6, 37), (2, 3, 4, 19)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_all_alike(mode: str, layout: str, dtype: torch.dtype) -> None:
    for shape, finished in itertools.product(shapes(mode), (False, True)):
        finish = {"residual": True, "activation": "relu"} if finished and mode in FINISHED else {}
        call = op_call(mode, shape, dtype, layout=LAYOUTS[layout], **finish)
        assert_equals_reference(call, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_each_in_its_own(mode: str, dtype: torch.dtype) -> None:
    """x, residual and gradient in every triple of layouts."""
    add = MODES[mode][0] in ADD_OPS
    for shape in shapes(mode)[:1]:
        call = op_call(mode, shape, dtype, residual=True, **({} if add else {"activation": "silu"}))
        for names in itertools.product(LAYOUTS, repeat=3):
            layouts = (LAYOUTS[name] for name in names)
            laid = with_layouts(call, **dict(zip(("input", "residual", "gradients"), layouts, strict=True)))
            assert_equals_reference(laid, str(names))


@pytest.mark.parametrize("mode", FINISHED)
def test_masks(mode: str) -> None:
    """A mask of any strides, including 0, with any layout of x."""
    for shape, layout in itertools.product(shapes(mode), ("contiguous", "channels_last", "spread", "misaligned")):
        size = (shape[0], *shape[2:]) if mode in OVER_CHANNELS else shape[:-1]
        random = torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.6
        masks = {
            "dense": random,
            "strided": random.repeat_interleave(2, dim=-1)[..., ::2],
            "transposed": random.transpose(0, -1).contiguous().transpose(0, -1),
            "by sample": random[(slice(None), *(slice(1),) * (len(size) - 1))].expand(size),
            "by position": random[:1].expand(size),
            "of one element": torch.tensor(True).expand(size),
        }
        for name, mask in masks.items():
            call = op_call(mode, shape, mask=mask, residual=True, activation="silu", layout=LAYOUTS[layout])
            assert mask_of(call).stride() == mask.stride()  # type: ignore[union-attr]
            assert_equals_reference(call, f"{layout}, mask {name}")


@pytest.mark.parametrize("mode", MODES)
def test_expanded(mode: str) -> None:
    """Expanded gradients, as sums and means produce them, and expanded x and residual."""
    for shape, dtype in itertools.product(shapes(mode), (torch.float32, torch.bfloat16)):
        call = op_call(mode, shape, dtype, residual=True)
        for kept in ((), (0,), (1,), (0, 1), (len(shape) - 1,)):
            sizes = tuple(slice(None) if axis in kept else slice(1) for axis in range(len(shape)))

            def expanded(t: Tensor, sizes: tuple[slice, ...] = sizes) -> Tensor:
                return t[sizes].expand(t.shape)

            assert_equals_reference(with_layouts(call, gradients=expanded), f"gradient, kept {kept}")
            assert_equals_reference(with_layouts(call, residual=expanded), f"residual, kept {kept}")
            if kept in ((0, 1), (1,), (len(shape) - 1,)):
                assert_equals_reference(with_layouts(call, input=expanded), f"x, kept {kept}")


@pytest.mark.parametrize("mode", MODES)
def test_parameters(mode: str) -> None:
    """Weight, bias and given statistics expanded, strided and not aligned."""
    for layout in (lambda t: t[:1].expand_as(t), sliced, misaligned):
        names = ("weight", "bias", "running_mean", "running_var")
        for shape in shapes(mode):
            assert_equals_reference(with_layouts(op_call(mode, shape), **dict.fromkeys(names, layout)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_outputs_have_the_strides_that_compiled_code_is_promised(mode: str, layout: str) -> None:
    """The strides of the fakes, which inductor asserts. Axes of size 1 may have any."""
    for shape in shapes(mode):
        finish = {"activation": "silu"} if mode in FINISHED else {}
        call = op_call(mode, shape, residual=True, layout=LAYOUTS[layout], **finish)
        real = by_kernel(call).compared
        with FakeTensorMode() as fake:
            tensors = {name: t if t is None else fake.from_tensor(t) for name, t in call.tensors.items()}
            promised = by_kernel(Call(call.op, tensors, call.settings, tuple(map(fake.from_tensor, call.gradients))))
        for name, result in real.items():
            wanted = promised.compared[name]
            assert result.shape == wanted.shape
            assert result.dtype == wanted.dtype
            axes = [axis for axis, size in enumerate(result.shape) if size > 1]
            assert [result.stride(a) for a in axes] == [wanted.stride(a) for a in axes], (
                f"{mode} {name} of x {tuple(shape)} with strides {call.input.stride()}"
            )


@pytest.mark.parametrize("mode", OVER_CHANNELS)
def test_channels_last_comes_back_as_channels_last(mode: str) -> None:
    for shape, memory_format in (((3, 6, 5, 7), torch.channels_last), ((2, 6, 3, 2, 5), torch.channels_last_3d)):
        call = op_call(mode, shape, layout=lambda t, f=memory_format: t.to(memory_format=f))
        results = by_kernel(call).compared
        for name in ("output", "grad input"):
            assert results[name].is_contiguous(memory_format=memory_format), name


def test_nothing_is_written_beside_the_output() -> None:
    """Inputs are unchanged, bit by bit, also around the part of a larger tensor that is the input."""
    for mode in MODES:
        call = op_call(mode, shapes(mode)[0], residual=True, layout=spread)
        given = [t for t in (*call.tensors.values(), *call.gradients) if t is not None]
        before = [torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()).clone() for t in given]
        by_kernel(call)
        for t, was in zip(given, before, strict=True):
            assert torch.equal(torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()), was), mode


def test_several_normalized_axes() -> None:
    for mode in ("layer", "rms", "add_layer", "add_rms"):
        for shape, normalized in (((3, 5, 7, 9), 2), ((3, 5, 7, 9), 3), ((5, 7), 2), ((37,), 1)):
            for layout in ("contiguous", "transposed", "misaligned"):
                call = op_call(mode, shape, normalized=normalized, layout=LAYOUTS[layout])
                assert sample_axes(call)[1] == normalized
                assert_equals_reference(call, layout)
