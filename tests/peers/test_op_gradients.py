"""Gradients of every operation held against finite differences, in reverse and forward mode."""

from __future__ import annotations

import os

import pytest
import torch
from tests.peers.ops import OPS, OpSample, op_samples
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

# One random direction for each check; every element of every Jacobian with GAMMABETA_PEERS=1.
FAST = not os.environ.get("GAMMABETA_PEERS")


def function(sample: OpSample) -> tuple[list[Tensor], object]:
    """The operation as a function of its differentiable tensors; running statistics are fresh in each call."""
    names = sample.differentiable

    def call(*values: Tensor) -> Tensor:
        tensors = {name: t.clone() for name, t in sample.tensors.items() if name not in names}
        return sample.ours(**tensors, **dict(zip(names, values, strict=True)))

    return [sample.leaves()[name] for name in names], call


@pytest.mark.parametrize("op", OPS)
def test_first(op: str, route: str) -> None:
    for sample in op_samples(op, torch.float64, requires_grad=True):
        leaves, call = function(sample)
        assert gradcheck(
            call, leaves, fast_mode=FAST, check_forward_ad=True, check_batched_grad=True,
            check_batched_forward_grad=True,
        ), sample  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_second(op: str, route: str) -> None:
    for sample in op_samples(op, torch.float64, requires_grad=True):
        leaves, call = function(sample)
        assert gradgradcheck(call, leaves, fast_mode=FAST, check_fwd_over_rev=True, check_rev_over_rev=True), sample


@pytest.mark.parametrize("op", OPS)
def test_each_alone(op: str, route: str) -> None:
    """By one tensor, the others constants."""
    for sample in op_samples(op, torch.float64, requires_grad=True, empty=False):
        leaves, call = function(sample)
        for i in range(len(leaves)):
            for j, leaf in enumerate(leaves):
                leaf.requires_grad_(i == j)
            assert gradcheck(call, leaves, fast_mode=FAST, check_forward_ad=True), f"{sample} {i}"
