"""compile_options: norm, sum and relu become one call in Inductor's graphs, and nothing else does."""

import copy
import operator

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.ops import has_kernel

pytestmark = pytest.mark.skipif(not has_kernel("cpu"), reason="without kernels Inductor sees plain operations")


class Block(nn.Module):
    """A residual block, with a projected shortcut where it changes the channels."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = gb.BatchNorm2d(outputs), gb.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), gb.BatchNorm2d(outputs))

    def forward(self, x):
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += self.shortcut(x)
        return torch.relu(y)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), gb.BatchNorm2d(8), nn.ReLU(), Block(8, 8), Block(8, 16), nn.Conv2d(16, 4, 1),
        gb.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Seen(Exception):  # noqa: N818
    """Ends a compilation once the pass has run: what Inductor makes of the graph is not looked at."""


def graph_of(model, *inputs):
    """Return the graph after the pass, without compiling it."""
    torch._dynamo.reset()
    options = gb.compile_options()
    fuse, seen = options["joint_custom_pre_pass"], []

    class Stop(type(fuse)):
        def __call__(self, graph):
            super().__call__(graph)
            graph.eliminate_dead_code()
            seen.append(graph)
            raise Seen

    with pytest.raises(Exception, match="Seen"):
        torch.compile(model, options={**options, "joint_custom_pre_pass": Stop()}, fullgraph=True)(*inputs)
    (graph,) = seen
    return graph


def count(graph, name, *arguments):
    """Count the calls of an op of ours, or of aten, that have all these arguments."""
    found = [node for node in graph.nodes if name in str(node.target) and "auto_functionalized" not in str(node.target)]
    return sum(all(argument in node.args for argument in arguments) for node in found)


def test_norm_sum_and_relu_of_a_residual_network_are_one_call():
    graph = graph_of(network(), torch.randn(2, 3, 8, 8))
    assert count(graph, "aten.relu") == 0
    assert count(graph, "gammabeta.channel_norm_forward") == 6
    assert count(graph, "gammabeta.channel_norm_forward", "relu") == 5  # not the shortcut's
    assert count(graph, "gammabeta.sample_norm_forward", "relu") == 1
    assert sum(node.target is torch.ops.aten.add.Tensor and "norm" in str(node.args) for node in graph.nodes) == 0
    # Backward: those without a residual.
    assert count(graph, "gammabeta.channel_norm_backward", "relu") == 3
    assert count(graph, "gammabeta.sample_norm_backward", "relu") == 1
    assert count(graph, "aten.where") == 2


def test_what_it_computes():
    model = network()
    eager, x = copy.deepcopy(model), torch.randn(4, 3, 8, 8)
    torch._dynamo.reset()
    compiled = torch.compile(model, options=gb.compile_options(), fullgraph=True)
    for m in (eager, compiled):
        for _ in range(2):
            (m(x) * torch.linspace(-1, 1, 4)).sum().backward()
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)
    for (name, b), other in zip(model.named_buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(b, other, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    model.eval(), eager.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), eager(x), rtol=1e-4, atol=1e-4)


class Odd(nn.Module):
    """A forward of the test's, around one norm."""

    def __init__(self, forward):
        super().__init__()
        self.norm, self.of = gb.BatchNorm2d(3), forward

    def forward(self, x):
        return self.of(self.norm(x), x)


LEFT_ALONE = {
    "another reads the norm": lambda y, x: torch.relu(y) + y,
    "another reads the sum": lambda y, x: operator.add(torch.relu(z := y + x), z),
    "the residual is broadcast": lambda y, x: torch.relu(y + x[:1]),
    "the residual has another dtype": lambda y, x: torch.relu(y + x.double()),
    "the residual is scaled": lambda y, x: torch.relu(torch.add(y, x, alpha=2)),
    "the sum is with a number": lambda y, x: torch.relu(y + 1),
    "another activation": lambda y, x: torch.nn.functional.elu(y),
}


@pytest.mark.parametrize("what", LEFT_ALONE)
def test_what_is_left_alone(what):
    graph = graph_of(Odd(LEFT_ALONE[what]), torch.randn(2, 3, 4, 4))
    assert count(graph, "gammabeta.channel_norm_forward", "none") == 1
    assert count(graph, "gammabeta.channel_norm_forward", "relu") == 0


def test_a_norm_with_an_activation_keeps_it():
    model = nn.Sequential(gb.BatchNorm2d(3, activation="silu"), nn.ReLU())
    graph = graph_of(model, torch.randn(2, 3, 4, 4))
    assert count(graph, "gammabeta.channel_norm_forward", "silu") == 1
    assert count(graph, "aten.relu") == 1


def test_a_gradient_that_others_read_too_stays_masked():
    """The masked gradient goes to the norm, and by a hook to the loss's other parts."""
    model = network()
    graph = graph_of(model[:3], torch.randn(2, 3, 8, 8, requires_grad=True))
    assert count(graph, "gammabeta.channel_norm_backward", "relu") == 1
    assert count(graph, "aten.where") == 0


def test_convolutions_in_channels_last_need_no_copies():
    """Our ops take any layout: Inductor keeps that of its convolutions."""
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    # The result must have eager's layout, so the network does not end with a norm.
    ends = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
    model = nn.Sequential(ends[0], gb.BatchNorm2d(8), nn.Conv2d(8, 8, 3), gb.BatchNorm2d(8), ends[1])
    compiled = torch.compile(model)
    _, codes = run_and_get_code(lambda: compiled(torch.randn(2, 3, 12, 12)).square().sum().backward())
    for code in codes:
        body = code[code.index("def call(") :]
        assert "gammabeta.channel_norm" in body
        assert "cpp_fused_channel_norm" not in body, "a copy of a norm's input or output"
