"""The memory that a norm keeps from forward to backward, to the byte: x itself and vectors, never a copy of x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.routes import OURS
from torch import Tensor

import gammabeta as gb

pytestmark = pytest.mark.parametrize("route", OURS, indirect=True)

N, C, H, W = 4, 6, 5, 7
STATISTIC = {torch.float32: 16, torch.bfloat16: 16, torch.float64: 24}  # mean and variance, and the count in int64

# The layer by its finish, how many statistics it takes of (N, C, H, W), and its mask's shape.
LAYERS: dict[str, tuple[Callable[..., torch.nn.Module], int, tuple[int, ...]]] = {
    "BatchNorm2d": (lambda **kw: gb.BatchNorm2d(C, **kw), C, (N, H, W)),
    "InstanceNorm2d": (lambda **kw: gb.InstanceNorm2d(C, affine=True, **kw), N * C, (N, H, W)),
    "GroupNorm": (lambda **kw: gb.GroupNorm(2, C, **kw), N * 2, (N, H, W)),
    "LayerNorm": (lambda **kw: gb.LayerNorm(W, **kw), N * C * H, (N, C, H)),
    "LayerNorm over three axes": (lambda **kw: gb.LayerNorm((C, H, W), **kw), N, (N,)),
    "RMSNorm": (lambda **kw: gb.RMSNorm(W, **kw), N * C * H, (N, C, H)),
}

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "strided": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
}


def kept(call: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
    saved: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        return call(), saved


def memory(saved: list[Tensor], *known: Tensor | None) -> tuple[list[int], int]:
    """Return which of the known tensors' storages are kept, by position, and the bytes of all other storages."""
    places = {t.untyped_storage().data_ptr(): i for i, t in enumerate(known) if t is not None}
    found = [places.get(t.untyped_storage().data_ptr()) for t in saved]
    others = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    return sorted(i for i in found if i is not None), sum(b for p, b in others.items() if p not in places)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", STATISTIC)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_keeps_x_parameters_and_statistics(name: str, dtype: torch.dtype, layout: str, route: str) -> None:
    make, statistics, mask_shape = LAYERS[name]
    x, residual = (LAYOUTS[layout](torch.randn(N, C, H, W).to(dtype)).requires_grad_() for _ in range(2))
    mask = torch.rand(mask_shape) < 0.7
    for activation in (None, "relu", "gelu"):
        for given, masked in ((None, None), (residual, None), (None, mask), (residual, mask)):
            layer = make(activation=activation)
            if dtype == torch.float64:
                layer.double()
            parameters = dict(layer.named_parameters())
            weight, bias = parameters["weight"], parameters.get("bias")
            y, saved = kept(lambda layer=layer, given=given, masked=masked: layer(x, given, mask=masked))
            places, rest = memory(saved, x, given, masked, weight, bias)
            wanted = [0, *([1] if given is not None and activation else []), *([2] if masked is not None else [])]
            wanted += [3, *([] if bias is None else [4])]
            what = f"activation {activation}, residual {given is not None}, mask {masked is not None}"
            assert set(places) <= set(wanted), f"{what}: kept {places}, which ought to be among {wanted}"
            assert places.count(0) == 1, f"{what}: x is kept {places.count(0)} times"
            assert rest <= statistics * STATISTIC[dtype], f"{what}: {rest} bytes besides, for {statistics} statistics"
            y.float().square().sum().backward()
            assert x.grad is not None
            x.grad = None


@pytest.mark.parametrize("dtype", STATISTIC)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_evaluation_keeps_the_running_statistics_themselves(
    activation: str | None, dtype: torch.dtype, route: str
) -> None:
    layer = gb.BatchNorm2d(C, activation=activation).to(dtype).eval()
    x, residual = (torch.randn(N, C, H, W).to(dtype).requires_grad_() for _ in range(2))
    _, saved = kept(lambda: layer(x, residual))
    known = x, residual, layer.weight, layer.bias, layer.running_mean, layer.running_var
    places, rest = memory(saved, *known)
    assert set(places) <= {0, 2, 3, 4, 5} | ({1} if activation else set())
    assert places.count(0) == 1
    assert rest == 0


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)])
def test_a_sum_keeps_the_sum_alone(dtypes: tuple[torch.dtype, torch.dtype], route: str) -> None:
    """The sum is an output: nothing of x's size is kept that would not exist anyway."""
    x, residual = (torch.randn(8, 40).to(dtype).requires_grad_() for dtype in dtypes)
    weight, bias = torch.randn(40, requires_grad=True), torch.randn(40, requires_grad=True)
    for norm, parameters in ((gb.functional.add_layer_norm, (weight, bias)), (gb.functional.add_rms_norm, (weight,))):
        (y, total), saved = kept(lambda norm=norm, given=parameters: norm(x, residual, (40,), *given))
        places, rest = memory(saved, total, x, residual, weight, bias)
        assert 0 in places
        assert not {1, 2} & set(places)
        assert rest <= 8 * 16
        (y.float() + total.float()).sum().backward()


def test_what_is_kept_is_seen_here(route: str) -> None:
    """A copy of x would be noticed."""
    x = torch.randn(N, C, H, W, requires_grad=True)
    _, saved = kept(lambda: torch.relu(x * 2) * x)
    places, rest = memory(saved, x)
    assert places == [0]
    assert rest >= x.numel() * x.element_size()
