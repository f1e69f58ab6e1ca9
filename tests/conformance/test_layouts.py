"""Memory layouts: tensors need not be contiguous or dense, and gradients need not have separate memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.conformance.call import CHANNEL_OPS, DTYPES, OPS, random_call, run
from tests.conformance.check import assert_conforms
from torch import Tensor


def strided(t: Tensor) -> Tensor:
    """Every second element of twice as many."""
    return t.repeat_interleave(2, dim=-1)[..., ::2]


def transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def offset(t: Tensor) -> Tensor:
    """Rows of a wider tensor, from its second column on."""
    return torch.cat([t, t[..., :3]], dim=-1).roll(1, dims=-1)[..., 1 : 1 + t.shape[-1]]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"strided": strided, "transposed": transposed, "offset": offset}


def modes(op: str) -> list[dict[str, object]]:
    modes: dict[str, list[dict[str, object]]] = {
        "batch_norm": [{"training": True}, {"training": False}],
        "instance_norm": [{"running": False}, {"running": True}],
    }
    return modes.get(op, [{}])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_not_contiguous(op: str, layout: str, dtype: torch.dtype, route: str) -> None:
    for mode in modes(op):
        call = random_call(op, (5, 6, 9), dtype, layout=LAYOUTS[layout], **mode)
        assert not call.input.is_contiguous()
        assert_conforms(call, route, layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        ((3, 6, 5, 4), torch.channels_last),
        ((2, 6, 3, 2, 4), torch.channels_last_3d),
        ((1, 6, 5, 4), torch.channels_last),
    ],
)
@pytest.mark.parametrize("op", CHANNEL_OPS)
def test_channels_last(
    op: str, shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype, route: str
) -> None:
    def layout(t: Tensor) -> Tensor:
        return t.to(memory_format=memory_format)

    for mode in modes(op):
        for finish in ({}, {"residual": True, "activation": "silu"}):
            call = random_call(op, shape, dtype, layout=layout, **mode, **finish)
            assert call.input.is_contiguous(memory_format=memory_format)
            assert_conforms(call, route)
            # x in one format, the gradient that comes back in another
            assert_conforms(replace(call, gradients=(call.gradients[0].contiguous(),)), route)
            if op == "batch_norm":
                results = run(call)
                assert results["output"].is_contiguous(memory_format=memory_format)
                assert results["grad input"].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("op", OPS)
def test_expanded_gradient(op: str, route: str) -> None:
    """The gradient of a sum or a mean: one element, expanded; and one for each channel."""
    for dtype in DTYPES:
        for mode in modes(op):
            call = random_call(op, (5, 6, 9), dtype, **mode)
            for source in (call.gradients[0][:1, :1, :1], call.gradients[0][:1, :, :1], call.gradients[0][:, :, :1]):
                gradient = source.expand(call.input.shape)
                assert 0 in gradient.stride()
                assert_conforms(replace(call, gradients=(gradient,) * len(call.gradients)), route)


@pytest.mark.parametrize("op", OPS)
def test_expanded_input(op: str, route: str) -> None:
    """One sample as a whole batch, without copying it."""
    for mode in modes(op):
        call = random_call(op, (5, 6, 9), torch.float32, **mode)
        assert_conforms(call.with_tensors(input=call.input[:1].expand(5, 6, 9)), route)


@pytest.mark.parametrize("op", OPS)
def test_expanded_and_strided_parameters(op: str, route: str) -> None:
    for mode in modes(op):
        call = random_call(op, (5, 6, 9), torch.float32, **mode)
        expanded = {
            name: t[:1].expand_as(t) for name in ("weight", "bias") if (t := call.tensor(name)) is not None
        }  # fmt: skip
        assert_conforms(call.with_tensors(**expanded), route)
        spread = {
            name: strided(t) for name in ("weight", "bias", "running_mean", "running_var")
            if (t := call.tensor(name)) is not None
        }  # fmt: skip
        assert_conforms(call.with_tensors(**spread), route)
