"""Tracing every operation as PyTorch's tests do: fake tensors, make_fx, AOTAutograd, torch.compile, opcheck."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.peers.close import assert_alike
from tests.peers.ops import LAYOUTS, OPS, RUNNING, OpSample, gradients, op_samples
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

# A few samples of each operation; all with GAMMABETA_PEERS=1, in some minutes.
FEW = None if os.environ.get("GAMMABETA_PEERS") else 3


def some(op: str, **kwargs: Any) -> list[OpSample]:
    """Samples whose settings differ."""
    samples = op_samples(op, torch.float32, empty=False, **kwargs)
    different = {str((sample.settings, sorted(sample.tensors), sample.input.ndim)): sample for sample in samples}
    return list(different.values())[:FEW]


def of_tensors(sample: OpSample) -> Callable[..., Tensor]:
    return lambda *tensors: sample.ours(**dict(zip(sample.tensors, tensors, strict=True)))


@pytest.mark.parametrize("route", ["ours"], indirect=True)
@pytest.mark.parametrize("which", ["contiguous", "transposed", "channels last"])
@pytest.mark.parametrize("op", OPS)
def test_fake_tensors_are_as_real_ones(op: str, which: str, route: str) -> None:
    """Each op of ours that runs, forward and backward, beside its fake: shapes, dtypes, strides, aliases.

    torch's own are left out: the fake of its batch_norm has other strides than the op for permuted axes.
    """
    for sample in op_samples(op, torch.float32, requires_grad=True):
        tensors = sample.leaves(LAYOUTS.get(which, torch.clone))
        with torch._subclasses.CrossRefFakeMode(ignore_op_fn=lambda op: op.namespace != "gammabeta"):
            y = sample.ours(**tensors)
            gradients(y, tensors, torch.ones_like(y))


@pytest.mark.parametrize("op", OPS)
def test_on_fake_and_meta_tensors(op: str, route: str) -> None:
    """Nothing is computed, and what comes out looks like what a computation gives."""
    for sample in op_samples(op, torch.float32, requires_grad=True):
        real = sample.ours(**sample.leaves())
        leaves = sample.leaves()
        with torch._subclasses.FakeTensorMode() as mode:
            tensors = {name: mode.from_tensor(t) for name, t in leaves.items()}
            fake = sample.ours(**tensors)
            for name, g in gradients(fake, tensors, torch.ones_like(fake)).items():
                assert (g.shape, g.dtype) == (leaves[name].shape, leaves[name].dtype)
        meta = sample.ours(**sample.leaves(lambda t: t.to("meta")))
        for y in (fake, meta):
            assert (y.shape, y.dtype, y.stride()) == (real.shape, real.dtype, real.stride()), sample
        assert meta.is_meta


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("op", OPS)
def test_make_fx(op: str, mode: str, route: str) -> None:
    """The traced graph computes what the function does, on other data too."""
    from torch.testing._internal.optests import make_fx_check

    for sample in some(op):
        make_fx_check(
            of_tensors(sample), tuple(sample.leaves().values()), {}, mode, assert_close=torch.testing.assert_close,
            randomize_data=True,
        )  # fmt: skip


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("op", OPS)
def test_aot_autograd(op: str, dynamic: bool, route: str) -> None:
    from torch.testing._internal.optests import aot_autograd_check

    for sample in some(op, requires_grad=True):
        aot_autograd_check(of_tensors(sample), tuple(sample.leaves().values()), {}, dynamic, check_gradients="auto")


@pytest.mark.parametrize("op", OPS)
def test_compiled(op: str, route: str) -> None:
    """One graph, for all sizes where these are dynamic: outputs, gradients and running statistics as in eager mode."""
    for sample in some(op, requires_grad=True)[:2]:
        torch._dynamo.reset()
        compiled = torch.compile(sample.ours, backend="aot_eager", fullgraph=True)
        results = []
        for call in (sample.ours, compiled):
            tensors = sample.leaves()
            y = call(**tensors)
            direction = torch.linspace(-1, 1, y.numel()).view(y.shape)
            moved = [tensors[name] for name in RUNNING if name in tensors]
            results.append([y, *gradients(y, tensors, direction).values(), *moved])
        # A single value's gradient is 0, the difference of two terms of 1/√ε = 316.
        assert_alike(results[1], results[0], sample, scale=30)
    torch._dynamo.reset()


class Recorded(TorchDispatchMode):
    """The calls of our ops, with copies of their arguments as they were."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "gammabeta":
            assert not kwargs
            copies = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)
            self.calls.append((func, copies))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("route", ["ours"], indirect=True)
@pytest.mark.parametrize("op", OPS)
def test_opcheck_of_what_is_called(op: str, route: str) -> None:
    """Every call of our private ops that the samples make, forward and backward."""
    calls = []
    for sample in op_samples(op, torch.float32, requires_grad=True):
        with Recorded() as recorded:
            tensors = sample.leaves()
            y = sample.ours(**tensors)
            gradients(y, tensors, torch.ones_like(y))
        assert any("forward" in str(func) for func, _ in recorded.calls)
        calls += recorded.calls
    assert len({func for func, _ in calls}) >= 2
    for i, (func, arguments) in enumerate(calls):
        utilities = ("test_schema", "test_faketensor", "test_autograd_registration")
        if FEW is None or i % 7 == 0:
            utilities = (*utilities, "test_aot_dispatch_dynamic")
        opcheck(func, arguments, test_utils=utilities)
