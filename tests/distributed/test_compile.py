"""Synced compiles as one graph, and computes in it what it does in eager mode."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from tests.distributed.test_exactness import layer
from tests.distributed.world import run

import gammabeta
from gammabeta.statistics import Synced

PROCESSES = 2
SIZES = {"uneven": (3, 2), "empty": (0, 4)}
KERNELS = (True, False) if gammabeta.ops.has_kernel("cpu") else (False,)
BACKENDS = ("aot_eager", "inductor")
CASES = [(backend, kernels, split) for backend in BACKENDS for kernels in KERNELS for split in SIZES]


def job():
    return {case: both(*case) for case in CASES}


def both(backend, kernels, split):
    """Eager's and compiled's output, gradients and running statistics; the latter with and without our kernels."""
    torch.compiler.reset()
    size = SIZES[split][dist.get_rank()]
    torch.manual_seed(dist.get_rank())
    x = torch.randn(size, 3, 4, 5, dtype=torch.float64) * 2 + dist.get_rank()
    direction, mask = torch.randn_like(x), torch.rand(size, 4, 5) > 0.3
    eager = layer(Synced(), "silu", momentum=None)
    compiled = copy.deepcopy(eager)
    found = [one(eager, x, direction, mask)]
    had = gammabeta.ops.has_kernel("cpu")
    gammabeta.ops._has_kernel["cpu"] = kernels
    try:
        found.append(one(torch.compile(compiled, backend=backend, fullgraph=True), x, direction, mask))
    finally:
        gammabeta.ops._has_kernel["cpu"] = had
    for result, norm in zip(found, (eager, compiled), strict=True):
        result += [norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var, norm.num_batches_tracked]
    return found


def one(norm, x, direction, mask):
    x, residual = x.clone().requires_grad_(), direction.clone().requires_grad_()
    for _ in range(2):  # the second call finds what the first compiled
        y = norm(x, residual, mask=mask)
        (y * direction).sum().backward()
    return [y.detach(), x.grad, residual.grad]


@functools.cache
def found():
    return run("tests.distributed.test_compile:job", PROCESSES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_is_eager(case):
    for results in found():
        eager, compiled = results[case]
        for expected, ours in zip(eager, compiled, strict=True):
            # The same sums, by the compiler's loops in another order.
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
