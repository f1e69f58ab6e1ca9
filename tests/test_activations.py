"""The table of activations, and that no implementation passes over one that it does not have."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta import activations, kernels, ops
from gammabeta.activations import ACTIVATIONS, MODULES, TABLE, activate, derivative

Z = torch.cat(
    (torch.linspace(-7, 7, 57, dtype=torch.float64), torch.tensor([0.0, 6.0, -3.0, 3.0], dtype=torch.float64))
)

# A row that neither C++ nor Triton has, before anything reads the table.
NEW_ROW = f"""
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("gammabeta.activations", {activations.__file__!r})
sys.modules[spec.name] = activations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(activations)
row = activations.Activation("softsign", lambda z, slope: z / (1 + z.abs()), lambda z, slope: (1 + z.abs()) ** -2)
activations.TABLE["softsign"] = row
activations.ACTIVATIONS += ("softsign",)
activations.CODES["softsign"] = len(activations.CODES)
"""


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_derivative_is_that_of_the_function(name):
    z = Z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(activate(z, name, 0.2).sum(), z)
    torch.testing.assert_close(derivative(Z, name, 0.2), expected, rtol=1e-12, atol=1e-15)
    if TABLE[name].exact_gradient:
        assert {*expected.tolist()} <= {0.0, 1.0}


@pytest.mark.parametrize(("module", "name"), MODULES.items())
def test_the_modules_compute_it(module, name):
    layer = module(0.2) if module is nn.LeakyReLU else module()
    assert torch.equal(layer(Z), activate(Z, name, 0.2))


def test_the_compiled_extension_has_the_table_s_names():
    if not ops.has_kernel("cpu"):
        pytest.skip("the CPU kernels are not built")
    assert tuple(torch.ops.gammabeta.cpu_activations().split(",")) == ACTIVATIONS
    with pytest.raises(ImportError, match="got an extension built for none, relu: install gammabeta again"):
        kernels._check_activations(("none", "relu"))
    x = torch.randn(4, 3)
    message = f"expected activation {', '.join(ACTIVATIONS[:-1])} or {ACTIVATIONS[-1]}, got softsign"
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gammabeta.channel_norm_forward(x, None, None, None, None, 1e-5, "softsign", 0.0)


def run(script, **variables):
    return subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **variables}, capture_output=True, text=True, timeout=120
    )


def test_the_default_implementations_have_a_new_activation_at_once():
    script = NEW_ROW + "import gammabeta as gb\nx = torch.randn(8, 4)\nz = gb.BatchNorm1d(4)(x)\n"
    script += "assert torch.allclose(gb.BatchNorm1d(4, activation='softsign')(x), z / (1 + z.abs()), atol=1e-6)"
    done = run(script, GAMMABETA_KERNELS="0")
    assert done.returncode == 0, done.stderr


def test_the_library_does_not_load_with_kernels_that_lack_an_activation():
    if not ops.has_kernel("cpu"):
        pytest.skip("the CPU kernels are not built")
    done = run(NEW_ROW + "import gammabeta")
    assert done.returncode != 0
    assert "ImportError: gammabeta: expected CPU kernels for the activations none, relu, relu6" in done.stderr


@pytest.mark.parametrize("direction", ["activate", "derivative"])
def test_triton_does_not_compile_for_an_unknown_code(direction):
    pytest.importorskip("triton")
    script = f"""
import torch, triton, triton.language as tl
from gammabeta.kernels.cuda import finish
@triton.jit
def kernel(z, y, CODE: tl.constexpr):
    at = tl.arange(0, 16)
    tl.store(y + at, finish.{direction}(tl.load(z + at), CODE, 0.0))
z, y = torch.randn(16), torch.empty(16)
kernel[(1,)](z, y, {len(TABLE) - 1})
print("a known code runs")
kernel[(1,)](z, y, {len(TABLE)})
"""
    done = run(script, TRITON_INTERPRET="1")
    assert done.returncode != 0
    assert done.stdout == "a known code runs\n"
    assert "no kernel has this activation" in done.stderr


def test_a_user_is_told_the_names():
    with pytest.raises(ValueError, match="expected activation None or one of relu, relu6, leaky_relu, silu, hardswish"):
        gb.LayerNorm(3, activation="softsign")
