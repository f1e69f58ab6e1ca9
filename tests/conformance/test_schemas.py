"""What torch requires of a registered op: schema, fake, autograd, tracing with dynamic shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.routes import OURS, tensor_ops
from torch.library import opcheck

ops = torch.ops.gammabeta


def tensors(dtype: torch.dtype) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    return {
        "x": normal(3, 4, 5), "g_y": normal(3, 4, 5), "residual": normal(3, 4, 5),
        "weight": normal(4), "bias": normal(4), "last": normal(5),
        "mask": torch.rand(3, 5, generator=g) < 0.7, "rows": torch.rand(3, 4, generator=g) < 0.7,
    }  # fmt: skip


def arguments(name: str, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Several sets for each operation: with everything, and with nothing that can be left out."""
    t = tensors(dtype)
    x, g_y, residual, weight, bias = (t[k] for k in ("x", "g_y", "residual", "weight", "bias"))
    mean, var, count = torch.randn(4), torch.rand(4) + 0.5, torch.full((4,), 15)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    mean, var = mean.to(wide), var.to(wide)
    images = x.unsqueeze(-1).expand(3, 4, 5, 2).contiguous(memory_format=torch.channels_last)
    grouped = torch.randn(3, 2).to(wide), (torch.rand(3, 2) + 0.5).to(wide), torch.full((3, 2), 10)
    rows = torch.randn(12, 1).to(wide), (torch.rand(12, 1) + 0.5).to(wide), torch.full((12, 1), 5)
    match name:
        case "channel_norm_forward":
            return [
                (x, weight, bias, residual, t["mask"], 1e-5, "silu", 0.0),
                (x, None, None, None, None, 1e-5, "none", 0.0),
                (images, weight.float(), None, None, None, 1e-5, "relu", 0.0),
                (x, weight, bias, residual.double(), None, 1e-5, "leaky_relu", 0.2),
            ]
        case "channel_apply_forward":
            return [
                (x, mean, var, weight, bias, residual, t["mask"], 1e-5, "gelu", 0.0),
                (images, mean, var, None, None, None, None, 1e-5, "none", 0.0),
                (x[:, :, ::2], mean, var, weight, None, residual[:, :, ::2].double(), None, 1e-5, "silu", 0.0),
            ]
        case "channel_norm_backward":
            return [
                (g_y, x, weight, bias, residual, t["mask"], mean, var, count, 1e-5, "silu", 0.0),
                (g_y, x, None, None, None, None, mean, var, None, 1e-5, "none", 0.0),
                (images, images, weight.float(), None, None, None, mean, var, count, 1e-5, "none", 0.0),
                (g_y[:1].expand(3, 4, 5), x, weight, bias, residual, None, mean, var, count, 1e-5, "gelu", 0.0),
            ]
        case "channel_moments":
            return [(x, t["mask"]), (x, None), (images, None), (x, t["mask"][:, :1].expand(3, 5))]
        case "channel_backward_reduce":
            return [
                (g_y, x, weight, bias, residual, t["mask"], mean, var, 1e-5, "silu", 0.0),
                (g_y, x, None, None, None, None, mean, var, 1e-5, "none", 0.0),
                (images, images, weight.float(), None, None, None, mean, var, 1e-5, "relu", 0.0),
            ]
        case "channel_backward_apply":
            sums = torch.randn(4).to(wide), torch.randn(4).to(wide), count
            return [
                (g_y, x, weight, bias, residual, t["mask"], mean, var, *sums, 1e-5, "silu", 0.0),
                (g_y, x, None, None, None, None, mean, var, *sums, 1e-5, "none", 0.0),
                (images, images, weight.float(), None, images, None, mean, var, *sums, 1e-5, "relu", 0.0),
            ]
        case "sample_norm_forward":
            return [
                (x, 1, 1, 2, weight, bias, residual, t["mask"], 1e-5, "hardswish", 0.0, True),
                (x, 2, 1, 1, t["last"], None, None, t["rows"], 1e-5, "none", 0.0, False),
                (images, 1, 1, 2, None, None, None, None, 1e-5, "none", 0.0, True),
            ]
        case "sample_norm_backward":
            return [
                (g_y, x, 1, 1, 2, weight, bias, residual, t["mask"], *grouped, 1e-5, "relu6", 0.0, True),
                (g_y, x, 2, 1, 1, t["last"], None, None, None, *rows, 1e-5, "none", 0.0, False),
                (images, images, 1, 1, 2, None, None, None, None, *grouped, 1e-5, "none", 0.0, True),
            ]
        case "add_sample_norm_forward":
            return [
                (x, residual, 1, t["last"], t["last"], 1e-5, True),
                (x, residual.double(), 1, None, None, 1e-5, False),
            ]
        case "add_sample_norm_backward":
            return [
                (g_y, g_y, x, 1, t["last"], t["last"], *rows, 1e-5, True),
                (g_y, g_y, x, 1, None, None, *rows, 1e-5, False),
            ]
        case "update_running_statistics_" | "move_running_statistics_":
            skipped, n = torch.zeros(6, dtype=torch.int64), torch.tensor([9, 1, 0, 4])
            spoilt = mean * torch.tensor([1.0, torch.nan, 1.0, torch.inf])
            return [
                (mean.clone(), var.clone(), torch.tensor(3), skipped, mean, var, None, 0.1),
                (mean.clone(), var.clone(), torch.tensor(3), skipped, mean, var, n, None),
                (mean.clone(), var.clone(), torch.tensor(3), None, mean, var, None, None),
                (mean.to(dtype), None, None, None, spoilt, var, n, 0.1),
                (None, var.clone(), torch.tensor(3), None, mean, var, None, 0.5),
            ]
        case "gather_moments_":
            n, forwards = torch.tensor([9, 0, 0, 4]), torch.tensor(1)
            return [(n.clone(), mean.clone(), var.clone(), forwards, mean, var, n)]
    raise AssertionError(f"no arguments for {name}: a new operation wants to be checked too")


def of_two_layouts(name: str) -> list[tuple[Any, ...]]:
    """x in channels_last and what comes back contiguous, the other way round, and x that is not dense."""
    x = torch.randn(3, 4, 5, 2)
    last, spread = x.to(memory_format=torch.channels_last), torch.randn(3, 6, 5, 4)[:, 1:5, :, ::2]
    weight, mean, var, count = torch.randn(4), torch.randn(4), torch.rand(4) + 0.5, torch.full((4,), 30)
    finish = 1e-5, "leaky_relu", 0.2
    grouped = torch.randn(3, 2), torch.rand(3, 2) + 0.5, torch.full((3, 2), 20)
    given: list[tuple[Any, ...]] = []
    for here, there in ((last, x), (x, last), (spread, x), (last, spread)):
        match name:
            case "channel_norm_forward":
                given.append((here, weight, None, there, None, *finish))
            case "channel_apply_forward":
                given.append((here, mean, var, weight, None, there, None, *finish))
            case "channel_norm_backward":
                given.append((there, here, weight, None, there, None, mean, var, count, *finish))
            case "channel_backward_reduce":
                given.append((there, here, weight, None, there, None, mean, var, *finish))
            case "channel_backward_apply":
                sums = torch.randn(4), torch.randn(4), count
                given.append((there, here, weight, None, there, None, mean, var, *sums, *finish))
            case "sample_norm_forward":
                given.append((here, 1, 1, 2, weight, None, there, None, *finish, True))
            case "sample_norm_backward":
                given.append((there, here, 1, 1, 2, weight, None, there, None, *grouped, *finish, True))
    return given


NAMES = tensor_ops()


def test_all_are_known() -> None:
    assert len(NAMES) >= 11


# Inputs that require no gradient: the ops have no derivative of their own, autograd.py gives them one.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("route", OURS, indirect=True)
def test_opcheck(route: str, name: str, dtype: torch.dtype) -> None:
    for given in arguments(name, dtype):
        opcheck(getattr(ops, name), given)


@pytest.mark.parametrize("route", [route for route in OURS if route != "reference"], indirect=True)
@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_two_layouts(route: str, name: str) -> None:
    """Kernels give the strides that the fakes promise; the reference those of torch's elementwise operations.

    Nothing is compiled that would run the reference as an op.
    """
    for given in of_two_layouts(name):
        opcheck(getattr(ops, name), given)
