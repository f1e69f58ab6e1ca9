"""GB101 on parts that are moving averages of another part, whose statistics are meant to move in training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gammabeta as gb


def encoder():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


class Averaging(nn.Module):
    """An encoder that trains and one beside it that no backward reaches, as in MoCo, BYOL and DINO."""

    def __init__(self, frozen=True, copies=True, average=True):
        super().__init__()
        torch.manual_seed(0)
        self.encoder_q = encoder()
        self.encoder_k = copy.deepcopy(self.encoder_q) if copies else encoder()
        self.encoder_k.requires_grad_(not frozen)
        self.predictor, self.average = nn.Linear(8, 8), average

    def forward(self, x):
        with torch.no_grad():
            if self.average:
                for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
                    k.data = k.data * 0.99 + q.data * 0.01  # as published; it leaves the version counter alone
            keys = self.encoder_k(x)
        return F.normalize(self.predictor(self.encoder_q(x))) @ F.normalize(keys).T

    def trained(self):
        return [*self.encoder_q.parameters(), *self.predictor.parameters()]


def batch(seed=0):
    return torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(seed)) + 1


def watched(model, parameters, steps=12):
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    with gb.watch(model, optimizer, every=5) as watch:
        for step in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(batch(step)) / 0.2, torch.arange(8)).backward()
            optimizer.step()
    return [*watch.diagnosis(select=["GB101", "GB113"]).findings]


def checked(model, **options):
    return [(f.severity, f.where) for f in gb.check(model, select=["GB101", "GB113"], **options).findings]


NOTES = [("note", "encoder_k.1"), ("note", "encoder_k.4")]


@pytest.mark.parametrize("given", [{}, {"inputs": batch()}])
def test_a_momentum_encoder_inside_the_model_is_a_note_that_changes_nothing(given):
    model = Averaging()
    diagnosis = gb.check(model, select=["GB101", "GB113"], **given)
    assert [(f.severity, f.where) for f in diagnosis.findings] == NOTES
    assert diagnosis.findings[0].fix is None
    assert diagnosis.findings[0].message.endswith(
        "; if encoder_k is a moving average of encoder_q, this is meant; otherwise freeze it: "
        "gammabeta.freeze(model.get_submodule('encoder_k'))"
    )
    diagnosis.fix()
    model(batch())
    assert model.encoder_k[1].running_mean.any()


@pytest.mark.parametrize("given", [{}, {"inputs": batch()}])
def test_a_target_network_that_only_the_optimizer_leaves_out_is_a_note(given):
    model = Averaging(frozen=False)
    optimizer = torch.optim.SGD(model.trained(), lr=0.1)
    assert checked(model, optimizer=optimizer, **given) == NOTES


def test_an_average_in_a_part_of_its_own_is_found_by_the_same_part_of_the_other():
    model = nn.Module()
    model.online = nn.ModuleDict({"net": encoder(), "predictor": nn.Linear(8, 8)})
    model.target = nn.ModuleDict({"net": copy.deepcopy(model.online["net"])}).requires_grad_(False)
    assert checked(model) == [("note", "target.net.1"), ("note", "target.net.4")]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("copies", [True, False])
def test_watched_an_average_is_known_by_its_parameters_and_not_found(frozen, copies):
    model = Averaging(frozen, copies)
    assert watched(model, model.trained()) == []
    assert watched(model, model.parameters()) == []


def test_watched_a_copy_that_is_no_average_is_found_as_a_frozen_part():
    model = Averaging(average=False)
    findings = watched(model, model.trained())
    assert [(f.severity, f.where) for f in findings] == [("error", "encoder_k.1"), ("error", "encoder_k.4")]
    assert findings[0].fix.mends


def test_a_frozen_part_of_the_same_structure_that_is_no_copy_is_found():
    """Two towers, or equal blocks of which some are frozen."""
    model = Averaging(copies=False)
    assert [s for s, where in checked(model) if where.startswith("encoder_k")][:2] == ["error", "error"]
    torch.manual_seed(0)
    blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)) for _ in range(4)))
    blocks[:2].requires_grad_(False)
    found = gb.check(blocks, select="GB101").findings
    assert [(f.severity, f.where) for f in found] == [("error", "0.1"), ("error", "1.1")]
