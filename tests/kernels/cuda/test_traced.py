"""Compilers see the launches of an op for CUDA: traced with fake CUDA tensors, without a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gammabeta.proof.interpreter import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 traces nothing")

# In a separate process, since registrations for CUDA are permanent.
TRACE = """
import torch, triton
from torch._functorch.aot_autograd import aot_function, make_boxed_compiler
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget

from gammabeta import ops
from gammabeta.kernels.cuda import register as cuda

class Driver:  # says which GPU there would be
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

triton.runtime.driver.set_active(Driver())
cuda.serves = lambda: {serves}
cuda._refused.update({refused})
cuda.register()
gammabeta = torch.ops.gammabeta

def norms(x, w, b, r, g):
    y, *statistics = gammabeta.channel_norm_forward(x, w, b, r, None, 1e-5, "relu", 0.0)
    gradients = gammabeta.channel_norm_backward(g, x, w, b, r, None, *statistics, 1e-5, "relu", 0.0)
    z, *of_groups = gammabeta.sample_norm_forward(x, 1, 1, 8, w, b, None, None, 1e-5, "none", 0.0, True)
    others = gammabeta.sample_norm_backward(g, x, 1, 1, 8, w, b, None, None, *of_groups, 1e-5, "none", 0.0, True)
    return y, *statistics, *gradients, z, *of_groups, *others

def compiler(graph, example_inputs):
    for node in graph.graph.nodes:
        if node.op == "call_function" and "getitem" not in str(node.target):
            clones = node.kwargs.get("tensors_to_clone")
            print(str(node.target).split("(")[0], *(clones or ()))
    return graph

with torch.no_grad(), FakeTensorMode():
    x = torch.empty(8, 64, 56, 56, device="cuda")
    w, b = torch.empty(64, device="cuda"), torch.empty(64, device="cuda")
    args = x, w, b, torch.empty_like(x), torch.empty_like(x)
    traced = aot_function(norms, fw_compiler=make_boxed_compiler(compiler))(*args)
    plain = norms(*args)  # by the fakes
print([(t.shape, t.dtype, t.stride()) for t in traced] == [(t.shape, t.dtype, t.stride()) for t in plain])
"""


def trace(serves: bool, refused: tuple[str, ...] = ()) -> list[str]:
    code = TRACE.replace("{serves}", str(serves)).replace("{refused}", repr(refused))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_ops_give_way_to_launches_that_write_their_results_alone() -> None:
    *nodes, same = trace(True)
    assert same == "True", "results are not as the fakes promise"
    assert not [node for node in nodes if node.startswith("gammabeta")]
    launches = [node.split()[1:] for node in nodes if node.startswith("triton_kernel_wrapper_functional")]
    written = {name for launch in launches for name in launch}
    assert {"y", "mean", "var", "count", "g_x", "g_residual", "partials"} <= written
    assert not written & {"x", "g_y", "residual", "weight", "bias"}, "an input would be cloned as if it were written"


def test_where_the_kernels_do_not_serve_the_ops_stay() -> None:
    nodes = trace(False)
    assert any(node.startswith("gammabeta.channel_norm_forward") for node in nodes)
    assert not any(node.startswith("triton_kernel_wrapper") for node in nodes)


def test_an_op_that_triton_refused_stays_and_the_others_give_way() -> None:
    nodes = trace(True, ("channel_norm_forward",))
    assert [node for node in nodes if node.startswith("gammabeta")] == ["gammabeta.channel_norm_forward.default"]
    assert any("g_x" in node for node in nodes if node.startswith("triton_kernel_wrapper"))


REFUSE = """
    for other in (torch.empty(64), torch.empty(64, device="meta"), torch.empty(63, device="cuda")):
        for run in (norms, aot_function(norms, fw_compiler=make_boxed_compiler(compiler))):
            try:
                run(args[0], other, *args[2:])
            except RuntimeError as error:
                print(str(error).splitlines()[0])
"""


def test_a_launch_is_refused_what_does_not_fit() -> None:
    """By the fake, and where the op is replaced by its launches."""
    before, traced = TRACE.replace("{serves}", "True").replace("{refused}", "()").split("    traced = ")
    assert traced
    done = subprocess.run([sys.executable, "-c", before + REFUSE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 6
    for i, words in enumerate(("cuda:0 and cpu", "cuda:0 and meta", "expected weight of shape (64,), got (63,)")):
        assert words in said[2 * i], said
        assert words in said[2 * i + 1], said
