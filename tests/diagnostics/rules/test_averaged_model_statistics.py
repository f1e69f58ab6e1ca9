"""GB108: averaged weights with statistics of other weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import gammabeta as gb


def trained(x, y, steps, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def accuracy(model, x, y):
    return (model.eval()(x).argmax(1) == y).float().mean().item()


def test_two_heads_on_one_input_have_the_same_statistics_by_right():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Linear(4, 8)
            self.one = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))
            self.other = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))

        def forward(self, x):
            return self.one(self.trunk(x)) + self.other(self.trunk(x))

    model = Heads()
    nn.init.normal_(model.one[0].weight)
    model(torch.randn(32, 4))
    assert torch.equal(model.one[0].running_mean, model.other[0].running_mean)
    assert gb.check(model, select="GB108").findings == ()


def test_the_average_is_worse_with_its_source_s_statistics_than_with_its_own():
    torch.manual_seed(0)
    x = torch.randn(512, 4) * 3 + 5
    y = ((x[:, 0] > 5) ^ (x[:, 1] > 5)).long()
    source = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    average = AveragedModel(source)
    for _ in range(4):
        # Between two averages the weights before the norm may drift: the norm removes their scale.
        trained(x, y, 60, source.train())
        with torch.no_grad():
            scale = torch.rand(32) * 3 + 0.2
            source[0].weight.mul_(scale[:, None])
            source[0].bias.mul_(scale)
        trained(x, y, 1, source)
        average.update_parameters(source)
    both = nn.ModuleDict({"net": source, "net_swa": average})
    diagnosis = gb.check(both, loader=[x], select="GB108")
    (finding,) = diagnosis.errors
    assert finding.where == "net_swa.module.1"
    assert finding.message == "running statistics equal those of net.1 bit for bit, although the weights differ"
    before = accuracy(average, x, y)
    diagnosis.fix()
    after = accuracy(average, x, y)
    assert after > before + 0.05, (before, after)
    assert not gb.check(both, select="GB108").findings


def test_a_copy_with_the_same_weights_is_not_found():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    model(torch.randn(16, 4))
    both = nn.ModuleList([model, copy.deepcopy(model)])
    assert not gb.check(both, select="GB108").findings


def test_an_average_by_hand_without_its_buffers_is_found_by_its_name_or_its_gradients():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    model(torch.randn(16, 4))
    for name, frozen in (("ema", False), ("other", True)):
        average = copy.deepcopy(model).requires_grad_(not frozen)
        with torch.no_grad():
            for parameter in average.parameters():
                parameter.mul_(0.9)
        for order in ({name: average, "net": model}, {"net": model, name: average}):
            (finding,) = gb.check(nn.ModuleDict(order), select="GB108").findings
            assert finding.where == f"{name}.1"


@pytest.mark.parametrize("use_buffers", [True, False])
def test_an_average_alone_with_statistics_of_0_and_1(use_buffers):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval()
    average = AveragedModel(model, use_buffers=use_buffers)
    for _ in range(3):
        average.update_parameters(model)
    (finding,) = gb.check(average, select="GB108").findings
    assert finding.message == "running statistics are still 0 and 1 after 3 averages"
