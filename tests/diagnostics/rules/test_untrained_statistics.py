"""GB103: what statistics of 0 and 1 cost a trained network, and which models are meant to have them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gammabeta as gb
from gammabeta.benchmarks.networks import load_timm


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


def test_a_trained_network_whose_statistics_are_lost_guesses_and_recalibrating_brings_it_back():
    torch.manual_seed(0)
    model, x, y = trained_network()
    assert accuracy(model, x, y) > 0.97
    assert not gb.check(model).findings
    count = model[1].num_batches_tracked.clone()
    model[1].reset_running_stats()
    model[1].num_batches_tracked.copy_(count)
    assert accuracy(model, x, y) < 0.6
    diagnosis = gb.check(model, loader=[x[:256], x[256:]], select="GB103")
    (finding,) = diagnosis.errors
    assert finding.where == "1"
    assert finding.message == (
        "running mean and variance are exactly 0 and 1, yet num_batches_tracked says that it has seen 100 batches"
    )
    diagnosis.fix()
    assert accuracy(model, x, y) > 0.97
    assert not gb.check(model).findings


def test_where_all_is_lost_a_note_says_that_it_may_be_new():
    torch.manual_seed(0)
    model, *_ = trained_network()
    model[1].reset_running_stats()
    (finding,) = gb.check(model, select="GB103").findings
    assert finding.severity == "note"
    assert finding.message == (
        "running mean and variance are exactly 0 and 1, while γ or β differ between channels: the weights are either "
        "new, from a constructor that draws them, or trained and without their statistics"
    )
    assert str(finding.fix) == "if the weights are trained: gammabeta.recalibrate(model, batches)"
    assert not gb.check(model.train(), select="GB103").findings


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        for norm in (self.one, self.two):
            nn.init.normal_(norm.weight, 0.1, 0.1)
            nn.init.normal_(norm.bias, 0, 0.1)

    def forward(self, x):
        return self.two(self.one(x).relu())


def test_in_a_block_whose_other_statistics_moved_lost_ones_are_told_from_new_ones():
    """A new part of drawn γ and β behind a trained one is no loss; one layer of a trained block is."""
    torch.manual_seed(0)
    body = nn.Sequential(Block(), Block())
    for _ in range(3):
        body(torch.randn(32, 8))
    model = nn.Sequential(body, nn.Sequential(Block(), Block()))
    assert not gb.check(model, select="GB103").findings
    (new,) = gb.check(model.eval(), select="GB103").findings
    assert (new.where, new.severity) == ("1.0.one", "note")
    assert "running mean and variance (and of 3 more) are exactly 0 and 1" in new.message
    body[1].two.reset_running_stats()
    for mode in (True, False):
        (lost,) = gb.check(model.train(mode), select="GB103").errors
        assert lost.where == "0.1.two"
        assert lost.message.endswith(", and the statistics of other norms in 0.1 have moved")


def test_a_count_beside_initial_statistics_is_no_loss_where_momentum_is_0():
    norm = nn.BatchNorm1d(8, momentum=0.0)
    norm(torch.randn(32, 8))
    assert not gb.check(norm, select="GB103").findings


def gan(norm):
    nn.init.normal_(norm.weight, 1, 0.02)


def drawn(norm):
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias, -1, 1)


def constant(norm):
    nn.init.constant_(norm.weight, 0.1)
    nn.init.constant_(norm.bias, -2)


@pytest.mark.parametrize("how", [gan, drawn, constant, lambda norm: nn.init.zeros_(norm.weight)])
@pytest.mark.parametrize("training", [True, False])
def test_models_as_constructed_are_not_found(how, training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    how(model[1])
    how(model[3])
    diagnosis = gb.check(model.train(training), select="GB103")
    assert not diagnosis.errors
    assert not diagnosis.warnings
    assert len(diagnosis.notes) == (not training and how in (gan, drawn))


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "repvit_m0_9"])
def test_timm_s_constructors_are_not_found(name):
    pytest.importorskip("timm")
    model = load_timm().create_model(name)
    for training in (True, False):
        diagnosis = gb.check(model.train(training), select="GB103")
        assert not diagnosis.errors
        assert not diagnosis.warnings
        assert len(diagnosis.notes) <= 1


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


@pytest.mark.parametrize("drawn", ["γ", "γ and β"])
def test_a_new_head_with_a_drawn_scale_behind_a_trained_body_is_new(drawn):
    """DCGAN's initialization draws γ and leaves β; training would have moved both."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    for _ in range(3):
        body(torch.randn(32, 4) + 1)
    norm = nn.BatchNorm1d(8)
    nn.init.normal_(norm.weight, 1, 0.02)
    if drawn == "γ and β":
        nn.init.normal_(norm.bias, 0, 0.02)
    model = nn.Sequential(body, nn.Linear(8, 8), norm, nn.ReLU())
    found = gb.check(model, select="GB103").errors
    assert [finding.where for finding in found] == ([] if drawn == "γ" else ["2"])
