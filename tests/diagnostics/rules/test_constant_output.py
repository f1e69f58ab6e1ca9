"""GB309: outputs that are the same for every sample, and where the difference is lost."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gammabeta as gb
from gammabeta.diagnostics.rules import constant_output


def found(model, inputs):
    return [(f.where, f.message) for f in gb.check(model, inputs, select="GB309").findings]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()


def test_different_inputs_give_the_same_bits_and_no_gradient_passes():
    example = constant_output.flagged()
    y = example.model(example.inputs * 5)
    assert torch.equal(y, y[:1].expand_as(y))
    y.square().sum().backward()
    assert not example.model[0].weight.grad.any()
    (finding,) = gb.check(example.model, example.inputs, select="GB309").findings
    assert finding.message == (
        "the model's outputs are the same for every sample, although the inputs differ: its γ is 0 in all channels, "
        "and nothing in this model bypasses it"
    )


@torch.no_grad()
@pytest.mark.parametrize("value", [1e20, 1e30])
def test_a_running_variance_far_too_large_is_found(value):
    model = network()
    model[1].running_var.fill_(value)
    model[1].bias.fill_(0.1)
    ((where, message),) = found(model, torch.randn(8, 3, 8, 8))
    assert where == "1"
    assert f"its running variance is up to {value:.3g}" in message
    assert found(network(), torch.randn(8, 3, 8, 8)) == []


@torch.no_grad()
def test_an_activation_that_passes_nothing_behind_a_norm_is_found_at_the_norm():
    model = network()
    model[1].bias.fill_(-20)
    ((where, message),) = found(model, torch.randn(8, 3, 8, 8))
    assert where == "1"
    assert "the activation behind it, 2, gives nothing of what it varies" in message


class Functional(nn.Module):
    def __init__(self, act):
        super().__init__()
        torch.manual_seed(0)
        self.act, self.l, self.n, self.h = act, nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        return self.h(self.act(self.n(self.l(x))))


@torch.no_grad()
@pytest.mark.parametrize(
    ("act", "beta"),
    [(F.relu, -50), (F.gelu, -50), (torch.sigmoid, -200), (torch.tanh, 50), (lambda x: x.clamp(0, 6), 50)],
)
def test_an_activation_that_is_a_function_is_found_at_the_norm_too(act, beta):
    model, x = Functional(act).eval(), torch.randn(16, 4)
    assert found(model, x) == []
    model.n.bias.fill_(beta)
    ((where, message),) = found(model, x)
    assert where == "n"
    assert message.endswith("its output varies, but what lies between it and h passes nothing of that")
    model.h = nn.Identity()
    assert found(model, x)[0][0] == "n"


@torch.no_grad()
def test_an_operation_with_weights_of_its_own_behind_a_norm_is_no_activation():
    weights = torch.zeros(8, 8)
    assert found(Functional(lambda x: x @ weights).eval(), torch.randn(16, 4)) == []


@pytest.mark.parametrize("value", [1e14, 1e20])
def test_the_norm_that_loses_the_difference_is_named_not_one_behind_it(value):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    for _ in range(40):
        model(torch.randn(8, 3, 12, 12))
    model.eval()
    with torch.no_grad():
        model[1].running_var.fill_(value)
    ((where, message),) = found(model, torch.randn(8, 3, 12, 12))
    assert where == "1"
    assert f"its running variance is up to {value:.3g}" in message


@torch.no_grad()
def test_layer_norms_are_looked_at_too():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    model[1].weight.zero_()
    assert [where for where, _ in found(model, torch.randn(8, 4))] == ["1"]


def test_what_is_meant_is_not_found():
    torch.manual_seed(0)
    inputs = torch.randn(8, 3, 8, 8)
    model = network()
    nn.init.zeros_(model[4].weight)  # a head that starts at 0
    assert found(model, inputs) == []
    example = constant_output.clean()
    nn.init.zeros_(example.model[2].weight)  # and a branch that starts at 0 before it
    assert found(example.model, inputs) == []
    assert found(constant_output.flagged().model, inputs[:1].expand(8, -1, -1, -1)) == []  # inputs do not vary
    assert found(constant_output.flagged().model, inputs[:1]) == []


def test_groups_of_one_value_are_another_rule():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.GroupNorm(8, 8))
    assert [f.code for f in gb.check(model, torch.randn(4, 3, 8, 8), select=["GB303", "GB309"]).findings] == ["GB303"]


def deep(std, momentum, batches):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(layer for _ in range(8) for layer in (nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8))), nn.Linear(8, 4)
    )
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is None:
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = momentum
            nn.init.constant_(module.bias, 0.1)
    for _ in range(batches):
        model(torch.randn(32, 8))
    return model.eval()


def test_what_the_initial_statistics_leave_in_a_young_training_is_not_said():
    """In evaluation each norm divides by what is left of a variance of 1, so that the outputs vanish."""
    inputs = torch.randn(32, 8)
    model = deep(std=0.01, momentum=0.1, batches=30)
    y = model(inputs)
    assert float((y - y[:1]).abs().max()) < 1e-6
    assert found(model, inputs) == []
    gb.recalibrate(model, [torch.randn(32, 8) for _ in range(8)])
    assert float((model(inputs) - model(inputs)[:1]).abs().max()) > 0.1
    model[1].running_var.fill_(1e20)
    assert [where for where, _ in found(model, inputs)] == ["1"]


def test_a_signal_that_vanishes_below_epsilon_is_told_and_recalibrating_is_not_advised():
    model = deep(std=1e-8, momentum=None, batches=5)
    (finding,) = gb.check(model, torch.randn(32, 8), loader=[torch.randn(32, 8)], select="GB309").findings
    assert "in training its input's variance is" in finding.message
    assert "far below ε = 1e-05" in finding.message
    assert "recalibrate" not in finding.fix.what
    assert not finding.fix.mends
