"""First, second and forward derivatives against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import gammabeta as gb
from gammabeta.proof.call import DIFFERENTIABLE
from gammabeta.proof.operations import ADD_OPS, CHANNEL_OPS, OPS
from gammabeta.proof.random_call import random_call

CASES: list[tuple[str, dict[str, Any]]] = [
    *((op, {}) for op in OPS if op != "batch_norm"),
    ("batch_norm", {"training": True}),
    ("batch_norm", {"training": False}),
    ("instance_norm", {"use_input_stats": False}),
]
FINISHES: dict[str, dict[str, Any]] = {
    "alone": {},
    "residual": {"residual": True},
    "silu": {"activation": "silu"},
    "residual and gelu": {"residual": True, "activation": "gelu"},
    "mask": {"mask": True},
    "mask, residual and silu": {"mask": True, "residual": True, "activation": "silu"},
}


def function(op: str, mode: dict[str, Any], finish: dict[str, Any]) -> tuple[Callable[..., Any], list[Tensor]]:
    """Return the operation as a function of its differentiable tensors, and values for them."""
    finish = dict(finish)
    if finish.pop("mask", False):
        size = (2, 3) if op in CHANNEL_OPS else (2, 2)
        mask = torch.ones(size, dtype=torch.bool)
        mask[0, 1] = False
        finish["mask"] = mask
    running = bool(mode.get("use_input_stats", True)) is False or mode.get("training") is False
    call = random_call(op, (2, 2, 3), torch.float64, groups=1, running=running, **mode, **finish)
    names = [name for name in DIFFERENTIABLE if call.tensor(name) is not None]
    rest = {name: t for name, t in call.tensors.items() if name not in names}

    def f(*values: Tensor) -> Any:
        return getattr(gb.functional, op)(**dict(zip(names, values, strict=True)), **rest, **call.settings)

    tensors = [call.tensors[name].clone().requires_grad_() for name in names]  # type: ignore[union-attr]
    return f, tensors


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize(("op", "mode"), CASES)
def test_first_and_forward(op: str, mode: dict[str, Any], finish: str, route: str) -> None:
    if op in ADD_OPS and finish != "alone":
        return
    f, tensors = function(op, mode, FINISHES[finish])
    assert gradcheck(f, tensors, check_forward_ad=True, check_batched_grad=True, check_undefined_grad=True)


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize(("op", "mode"), CASES)
def test_second(op: str, mode: dict[str, Any], finish: str, route: str) -> None:
    if op in ADD_OPS and finish != "alone":
        return
    f, tensors = function(op, mode, FINISHES[finish])
    # In fast mode: along random directions, with every second derivative in each of them.
    assert gradgradcheck(f, tensors, check_fwd_over_rev=True, fast_mode=True)
