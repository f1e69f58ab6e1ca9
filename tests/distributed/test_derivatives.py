"""First and second derivatives of Synced against finite differences over all processes."""

import pytest
import torch
import torch.distributed as dist
from tests.distributed.replicated import replicated
from tests.distributed.test_exactness import SIZES
from tests.distributed.world import once
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError

from gammabeta.aten import Finish
from gammabeta.functional import NormCall
from gammabeta.running_statistics import RunningStatistics
from gammabeta.statistics import Batch, Synced

CHANNELS, POSITIONS, EPS = 2, 2, 0.1
CASES = {"plain": (None, False), "silu and a mask": ("silu", True)}
CHECKS = {"first": gradcheck, "second": gradgradcheck}


def tensors(sizes):
    generator = torch.Generator().manual_seed(3)
    shape = (sum(sizes), CHANNELS, POSITIONS)
    x, residual = (torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    weight, bias = (torch.randn(CHANNELS, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    mask = torch.rand(shape[0], POSITIONS, generator=generator) > 0.3
    return x, weight, bias, residual, mask


def job():
    sizes = {name: sizes[: dist.get_world_size()] for name, sizes in SIZES.items() if name != "even"}
    sizes["uneven"] = (2, 1, 1, 1)[: dist.get_world_size()]  # few, since each element is moved on its own
    return {
        (split, case, order): outcome(sizes[split], *CASES[case], CHECKS[order])
        for split in sizes
        for case in CASES
        for order in CHECKS
    } | {(split, "agrees"): against_batch(sizes[split]) for split in sizes}


def norms(sizes, activation, masked):
    """Return Synced on shares, and Batch on the whole batch, as functions of the same tensors."""
    *leaves, mask = tensors(sizes)
    first = sum(sizes[: dist.get_rank()])

    def synced(x, weight, bias, *residual):
        finish = Finish("batch_norm", *residual or (None,), activation, 0.01, None)
        finish.mask = mask[first : first + len(x)] if masked else None
        return Synced().normalize(NormCall(x, RunningStatistics(), (weight, bias), EPS, finish))

    def batch(x, weight, bias, *residual):
        finish = Finish("batch_norm", *residual or (None,), activation, 0.01, mask if masked else None)
        return Batch().normalize(NormCall(x, RunningStatistics(), (weight, bias), EPS, finish))

    return replicated(synced, sizes), batch, leaves if activation else leaves[:3]


def outcome(sizes, activation, masked, check):
    synced, _, leaves = norms(sizes, activation, masked)
    torch.manual_seed(0)  # directions are drawn, which have to be the same in every process
    try:
        # Every element of every tensor is moved with two processes; with more, random directions are enough.
        return check(synced, leaves, fast_mode=dist.get_world_size() > 2)
    except GradcheckError as error:
        return str(error)


def against_batch(sizes):
    """Return the largest difference between third derivatives by Synced and by Batch, and their size."""
    synced, batch, leaves = norms(sizes, "silu", True)
    found = []
    for norm in (synced, batch):
        derivative = norm(*leaves).square().sum()
        for leaf in (leaves[0], leaves[1], leaves[0]):
            (gradient,) = torch.autograd.grad(derivative, leaf, create_graph=True)
            derivative = gradient.pow(3).sum()
        found.append(gradient.detach())
    return (found[0] - found[1]).abs().max().item(), found[1].abs().max().item()


def outcomes(processes):
    return once("tests.distributed.test_derivatives:job", processes)


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("split", ["uneven", "empty", "first empty"])
class TestDerivatives:
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("order", CHECKS)
    def test_they_are_those_of_finite_differences(self, processes, split, case, order):
        assert [outcome[split, case, order] for outcome in outcomes(processes)] == [True] * processes

    def test_the_third_ones_are_those_of_batch(self, processes, split):
        for outcome in outcomes(processes):
            off, size = outcome[split, "agrees"]
            # Cubes of cubes: rounding grows with each, and stays far under a wrong term, which is of the size itself.
            assert off <= 1e-9 * size
