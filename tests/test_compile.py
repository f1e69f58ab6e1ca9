"""torch.compile, torch.export and ONNX, by both routes."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import gammabeta as gb


class Net(nn.Module):
    """Every norm once, with our additions: a residual, an activation, a mask, cumulative momentum."""

    def __init__(self, activation=None, momentum=0.1):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.batch = gb.BatchNorm2d(8, activation=activation, momentum=momentum)
        self.group = gb.GroupNorm(2, 8, activation=activation)
        self.instance = gb.InstanceNorm2d(8, affine=True, activation=activation)
        self.layer = gb.LayerNorm(8, activation=activation)
        self.rms = gb.RMSNorm(8)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x, mask=None):
        h = self.conv(x)
        h = self.batch(h, residual=h * 0.5, mask=mask)
        h = self.group(h, mask=mask)
        h = self.instance(h).mean((2, 3))
        return self.rms(self.layer(h, residual=h))


def _compare(net, compiled, batches, masked):
    """Compare outputs, gradients and running statistics of the compiled net to eager ones, batch by batch."""
    eager = copy.deepcopy(net)
    for size in batches:
        x = torch.randn(size, 3, 8, 8)
        mask = torch.rand(size, 6, 6) > 0.3 if masked else None
        y, expected = compiled(x, mask), eager(x, mask)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)  # another order of float32 sums
        for out in (y, expected):
            (out * torch.linspace(-1, 1, 8)).sum().backward()
    for (name, parameter), other in zip(net.named_parameters(), eager.parameters(), strict=True):
        # The gradient of a bias before a norm is zero except for rounding: compared on the scale of the others.
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
    for (name, buffer), other in zip(net.named_buffers(), eager.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, other[1], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert net.batch.num_batches_tracked == len(batches)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("activation", "momentum"), [(None, 0.1), ("gelu", None)])
def test_aot_eager_without_a_graph_break(activation, momentum, masked, route):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = Net(activation, momentum)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    _compare(net, compiled, (4, 6), masked)


@pytest.mark.parametrize("masked", [False, True])
def test_inductor_without_a_graph_break(masked, route):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = Net("silu", None)
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    _compare(net, compiled, (4, 6), masked)


def test_compiled_statistics_keep_what_a_batch_that_is_not_finite_would_spoil(route):
    torch._dynamo.reset()
    layer = gb.BatchNorm1d(3, momentum=None)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    bad = torch.randn(8, 3)
    bad[2, 1] = torch.inf
    good = torch.randn(8, 3)
    compiled(bad)
    compiled(good)
    torch.testing.assert_close(layer.running_mean[1], good[:, 1].mean())
    torch.testing.assert_close(layer.running_mean[0], (bad[:, 0].mean() + good[:, 0].mean()) / 2)
    assert layer.skipped_updates.tolist() == [0, 1, 0]


class TestExport:
    @pytest.mark.parametrize("training", [False, True])
    def test_has_torch_s_standard_ops_and_runs(self, training):
        torch.manual_seed(0)
        net = Net("relu").train(training)
        x = torch.randn(2, 3, 8, 8)
        program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
        targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        norms = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"}
        assert {f"aten.{norm}.default" for norm in norms} <= targets
        assert not any("gammabeta" in target for target in targets)
        module = program.module()
        other = torch.randn(5, 3, 8, 8)
        torch.testing.assert_close(module(other), copy.deepcopy(net)(other))
        if training:
            assert module.batch.num_batches_tracked == 1

    def test_with_a_mask_exports_too(self, route):
        torch.manual_seed(0)
        net = Net("silu").eval()
        x, mask = torch.randn(2, 3, 8, 8), torch.rand(2, 6, 6) > 0.3
        program = torch.export.export(net, (x, mask))
        other = torch.randn(2, 3, 8, 8), torch.rand(2, 6, 6) > 0.5
        torch.testing.assert_close(program.module()(*other), net(*other))


class TestOnnx:
    @pytest.mark.parametrize("activation", [None, "relu", "hardswish", "gelu"])
    def test_onnxruntime_gives_the_same_in_evaluation(self, activation, tmp_path):
        torch.manual_seed(0)
        net = Net(activation)
        with torch.no_grad():
            net(torch.randn(16, 3, 8, 8))  # running statistics that are not 0 and 1
        net.eval()
        file = tmp_path / "net.onnx"
        torch.onnx.export(net, (torch.randn(2, 3, 8, 8),), dynamo=True, verbose=False).save(file)
        session = onnxruntime.InferenceSession(file)
        x = torch.randn(2, 3, 8, 8)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(y, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
