"""Trainings that diverge because an update made the parameters explode: the update is blamed, and no module."""

import math

import pytest
import torch
from torch import nn

import gammabeta as gb


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)
    )


def train(model, optimizer, steps=30, run=None, rates=None, loss=torch.square, to_none=True):
    torch.manual_seed(1)
    run = model if run is None else run
    usual = optimizer.param_groups[0]["lr"]
    with gb.watch(run, optimizer) as watch:
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = (rates or {}).get(step, usual)
            optimizer.zero_grad(set_to_none=to_none)
            loss(run(torch.randn(16, 4))).mean().backward()
            optimizer.step()
    return watch


def finding(watch):
    (found,) = watch.diagnosis(select="GB404").findings
    return found


OPTIMIZERS = [torch.optim.SGD, lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9), torch.optim.AdamW]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("rate", [1e37, 1e30, 1e12])
def test_the_first_update_is_blamed_with_its_rate_and_the_largest_parameter(make, rate):
    model = network()
    watch = train(model, make(model.parameters(), lr=rate))
    divergence = watch.watched.divergence
    explosion = divergence.explosion
    assert (divergence.cause, divergence.where, finding(watch).where) == ("explosion", None, "")
    assert (explosion.first, explosion.last, explosion.rate) == (0, 0, rate)
    assert explosion.before <= 1 < 1e9 < explosion.now < math.inf
    assert divergence.title == f"Training diverged at step {divergence.step}: an update made parameters explode"
    message = finding(watch).message
    assert f"the update of step 0 made parameters explode: the largest, {explosion.parameter}, was " in message
    assert f" after; the learning rate was {rate:g}" in message
    assert "this module" not in message


@pytest.mark.parametrize("spike", [1, 3, 11, 16, 17, 25])  # steps that are measured, and others
def test_the_step_of_a_spike_of_the_rate_is_named(spike):
    model = network()
    watch = train(model, torch.optim.SGD(model.parameters(), lr=0.01), rates={spike: 1e30})
    explosion = watch.watched.divergence.explosion
    assert watch.watched.divergence.step == spike + 1
    assert explosion.first <= explosion.last == spike
    assert (explosion.rate, explosion.rate_step) == (1e30, spike)


@pytest.mark.parametrize("rate", [10.0, 1e3, 1e5])
def test_updates_that_grow_from_step_to_step_are_blamed_too(rate):
    model = network()
    watch = train(model, torch.optim.SGD(model.parameters(), lr=rate))
    assert watch.watched.divergence.cause == "explosion"
    assert watch.watched.divergence.explosion.rate == rate


def test_where_one_module_exploded_it_is_named():
    model = network()
    groups = [{"params": model[3].parameters(), "lr": 1e36}, {"params": model[5].parameters(), "lr": 1e-3}]
    watch = train(model, torch.optim.SGD(groups))
    assert watch.watched.divergence.where == finding(watch).where == "3"
    assert watch.watched.divergence.explosion.parameter in ("3.weight", "3.bias")
    assert "with a lower learning rate" in str(finding(watch).fix)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("step", [4, 5])  # a step that is measured, and one that is not
def test_an_update_that_is_not_finite_itself_is_told_from_a_gradient(step, to_none):
    model = network()
    rates = {step: math.nan}
    watch = train(model, torch.optim.SGD(model.parameters(), lr=0.01), rates=rates, to_none=to_none)
    assert watch.watched.divergence.cause == "explosion"
    assert "the learning rate was nan" in finding(watch).message
    assert "its loss or a gradient was not" not in finding(watch).message
    spoiled = network()
    optimizer = torch.optim.SGD(spoiled.parameters(), lr=0.01)
    count = iter(range(99))
    watch = train(spoiled, optimizer, to_none=to_none, loss=lambda y: y * (math.nan if next(count) == step else 1))
    assert (watch.watched.divergence.step, watch.watched.divergence.cause) == (step, "update")
    assert "its loss or a gradient was not" in finding(watch).message


def test_a_module_that_overflows_with_parameters_as_usual_is_still_blamed():
    class Exponential(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return torch.exp(x * (200 if self.calls == 10 else 0.01))

    model = network().insert(3, Exponential())
    watch = train(model, torch.optim.SGD(model.parameters(), lr=0.01))
    assert watch.watched.divergence.cause == "forward"
    assert watch.watched.divergence.explosion is None


def test_weights_that_grow_from_zero_are_no_explosion():
    model = network()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    watch = train(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    assert watch.watched.divergence is None


class TestCompiled:
    def run(self, rates=None, loss=torch.square):
        model = network()
        run = torch.compile(model, backend="eager")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        return train(model, optimizer, steps=62, run=run, rates=rates, loss=loss)

    def test_the_step_is_said_to_lie_between_two_measured_ones(self):
        count = iter(range(99))
        watch = self.run(loss=lambda y: y * (math.nan if next(count) == 53 else 1))
        assert watch.watched.divergence.title == "Training diverged between steps 41 and 60"
        assert (
            "were not finite after step 60 and finite after step 40, with no forward seen in between"
            in finding(watch).message
        )

    def test_a_spike_of_the_rate_is_named_with_its_step(self):
        watch = self.run(rates={53: 1e30})
        assert watch.watched.divergence.title == (
            "Training diverged between steps 41 and 60: an update made parameters explode"
        )
        assert "the updates of steps 41 to 60 made parameters explode; the learning rate was 1e+30 in step 53" in (
            finding(watch).message
        )
