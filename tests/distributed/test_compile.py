"""Synced compiles to one graph, which computes the same as eager mode."""

import copy

import pytest
import torch
import torch.distributed as dist
from tests.distributed.test_exactness import layer
from tests.distributed.test_traffic import GATHER, REDUCE
from tests.distributed.world import once
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

import gammabeta
from gammabeta.statistics import Synced

PROCESSES = 2
SIZES = {"uneven": (3, 2), "empty": (0, 4)}
KERNELS = (True, False) if gammabeta.ops.has_kernel("cpu") else (False,)
BACKENDS = ("aot_eager", "inductor")
CASES = [(backend, kernels, split) for backend in BACKENDS for kernels in KERNELS for split in SIZES]


def job():
    return {case: both(*case) for case in CASES} | {"collectives": collectives()}


def collectives():
    """Return the collectives in the graphs of forward and backward, and the bytes that each sends."""
    torch.compiler.reset()
    seen = []

    def compiler(graph, inputs):
        nodes = [node for node in graph.graph.nodes if getattr(node.target, "namespace", "") == "_c10d_functional"]
        values = [(node.target._opname, node.args[0].meta["val"]) for node in nodes]
        seen.append([(name, v.numel() * v.element_size()) for name, v in values if name != "wait_tensor"])
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    norm = torch.compile(layer(Synced()), backend=backend, fullgraph=True)
    norm(torch.randn(3, 3, 4, 5, dtype=torch.float64, requires_grad=True)).sum().backward()
    return seen


def both(backend, kernels, split):
    """Return output, gradients and running statistics of eager and compiled code, with and without our kernels."""
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


def found():
    return once("tests.distributed.test_compile:job", PROCESSES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_is_eager(case):
    for results in found():
        eager, compiled = results[case]
        for expected, ours in zip(eager, compiled, strict=True):
            # The same sums in the order of the compiler's loops.
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_compiled_exchanges_as_much_as_eager():
    for results in found():
        assert results["collectives"] == [[(GATHER, 8 * 8)], [(REDUCE, 6 * 8)]]
