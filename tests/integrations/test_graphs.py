"""Graphs for other programs: torch.jit.trace, both ONNX exporters, torch.export and AOTInductor."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tests.integrations.models import Norms, pair
from torch import nn

import gammabeta as gb

STANDARD = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"}


@pytest.fixture(autouse=True)
def quiet() -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning)


@pytest.mark.parametrize("training", [True, False])
def test_traced_saved_and_loaded(training: bool) -> None:
    ours, theirs = pair(Norms().train(training))
    x = torch.randn(4, 3, 10, 10)
    traced = torch.jit.trace(ours, x, check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    kinds = {node.kind().partition("::")[2] for node in loaded.inlined_graph.nodes()}
    assert kinds >= STANDARD
    other = torch.randn(7, 3, 12, 10)
    if training:
        theirs(x)  # which tracing has seen
    torch.testing.assert_close(loaded(other), theirs(other), rtol=1e-4, atol=1e-4)
    if training:
        torch.testing.assert_close(loaded.batch.running_mean, theirs.batch.running_mean, rtol=1e-4, atol=1e-4)
        assert loaded.batch.num_batches_tracked == 2


def test_traced_with_a_mask_and_an_activation() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.batch = gb.BatchNorm1d(6, activation="silu")
            self.layer = gb.LayerNorm(6, activation="relu")

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.layer(self.batch(x, mask=mask).mT, mask=mask)

    net = Masked().eval()
    x, mask = torch.randn(3, 6, 5), torch.rand(3, 5) > 0.3
    traced = torch.jit.trace(net, (x, mask))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    other = torch.randn(4, 6, 5), torch.rand(4, 5) > 0.5
    torch.testing.assert_close(torch.jit.load(file)(*other), net(*other))


class WithoutRms(Norms):
    """The exporter for TorchScript has no RMSNorm, torch's neither."""

    def __init__(self) -> None:
        super().__init__()
        self.rms = nn.Identity()


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnxruntime_gives_the_same(dynamo: bool, tmp_path: Path) -> None:
    ours, theirs = pair(WithoutRms().eval())
    file = tmp_path / "net.onnx"
    x = torch.randn(2, 3, 10, 10)
    if dynamo:
        torch.onnx.export(ours, (x,), dynamo=True, verbose=False).save(file)
    else:
        torch.onnx.export(ours, (x,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, theirs(x).detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LayerNorm"])
def test_a_layer_alone_by_the_exporter_for_torchscript(name: str, tmp_path: Path) -> None:
    """Which gives every argument of forward by position."""
    args = (2, 8) if name == "GroupNorm" else (8,)
    ours, theirs = getattr(gb, name)(*args).eval(), getattr(nn, name)(*args).eval()
    x = torch.randn(2, 8, 5, 8)
    torch.onnx.export(ours, (x,), tmp_path / "norm.onnx", dynamo=False)
    session = onnxruntime.InferenceSession(tmp_path / "norm.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, theirs(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [True, False])
def test_exported_with_dynamic_sizes(strict: bool) -> None:
    ours, theirs = pair(Norms().eval())
    x = torch.randn(4, 3, 10, 10)
    sizes = ({0: torch.export.Dim("n", min=2), 2: torch.export.Dim("h", min=5)},)
    program = torch.export.export(ours, (x,), dynamic_shapes=sizes, strict=strict)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {f"aten.{norm}.default" for norm in STANDARD} <= targets
    assert not any("gammabeta" in target for target in targets)
    other = torch.randn(9, 3, 40, 10)
    torch.testing.assert_close(program.module()(other), theirs(other), rtol=1e-4, atol=1e-4)


def test_aot_inductor(tmp_path: Path) -> None:
    ours, theirs = pair(Norms().eval())
    x = torch.randn(4, 3, 10, 10)
    with torch.no_grad():
        program = torch.export.export(ours, (x,))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        y = torch._inductor.aoti_load_package(package)(x)
    torch.testing.assert_close(y, theirs(x), rtol=1e-4, atol=1e-4)
