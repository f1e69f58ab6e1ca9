"""GB103: what statistics of 0 and 1 cost a trained network, and which models are meant to have them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gammabeta as gb


def trained_network():
    """Train a network on two classes that differ in the sign of one of four inputs far from 0."""
    x = torch.randn(512, 4) + 5
    y = (x[:, 0] > 5).long()
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), x, y


def accuracy(model, x, y):
    return (model(x).argmax(1) == y).float().mean().item()


def test_a_trained_network_whose_statistics_are_reset_guesses_and_recalibrating_brings_it_back():
    torch.manual_seed(0)
    model, x, y = trained_network()
    assert accuracy(model, x, y) > 0.97
    assert not gb.check(model).findings
    model[1].reset_running_stats()
    assert accuracy(model, x, y) < 0.6
    diagnosis = gb.check(model, loader=[x[:256], x[256:]], select="GB103")
    (finding,) = diagnosis.errors
    assert finding.where == "1"
    assert "running mean and variance are exactly 0 and 1, yet γ ranges from" in finding.message
    diagnosis.fix()
    assert accuracy(model, x, y) > 0.97
    assert not gb.check(model).findings


def test_models_as_constructed_are_not_found():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    nn.init.normal_(model[1].weight, 1, 0.02)  # the usual initialization of GANs
    nn.init.zeros_(model[3].weight)  # the usual initialization of residual branches
    assert not gb.check(model, select="GB103").findings


def test_a_new_layer_in_a_trained_model_is_not_found():
    torch.manual_seed(0)
    model, *_ = trained_network()
    assert not gb.check(nn.Sequential(model, nn.BatchNorm1d(2)), select="GB103").findings


@pytest.mark.parametrize(("momentum", "found"), [(None, 1), (0.1, 0)])
def test_a_count_of_0_beside_statistics_that_moved_matters_where_momentum_goes_by_it(momentum, found):
    norm = nn.BatchNorm1d(4, momentum=momentum)
    norm(torch.randn(32, 4) + 3)
    norm.num_batches_tracked.zero_()
    assert len(gb.check(norm, select="GB103").warnings) == found
    x = torch.randn(32, 4) - 3
    norm(x)
    replaced = torch.allclose(norm.running_mean, x.mean(0), atol=1e-6)  # rounding of means of size 3
    assert replaced == bool(found)
