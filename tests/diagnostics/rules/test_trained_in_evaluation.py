"""GB114: what training in evaluation mode does, and how it is told from what is meant."""

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.rules import trained_in_evaluation


def watched(example):
    with gb.watch(example.model, example.optimizer) as watch:
        example.train()
    return watch


def findings(watch):
    return [(f.severity, f.where) for f in watch.diagnosis(select="GB114").findings]


def far(model):
    x = model[0](torch.randn(4096, 4) + 1).detach()
    norm = model[1]
    return float(((x.mean(0) - norm.running_mean) / norm.running_var.sqrt()).abs().max())


def test_the_statistics_stay_behind_the_weights():
    apart = {}
    for which in (trained_in_evaluation.flagged, trained_in_evaluation.clean):
        example = which()
        watched(example)
        apart[which.__name__] = far(example.model)
    assert apart["flagged"] > 0.8
    assert apart["clean"] < 0.4


def test_the_message_has_the_steps():
    (finding,) = watched(trained_in_evaluation.flagged()).diagnosis(select="GB114").findings
    assert finding.message == (
        "15 of 20 steps ran in evaluation mode after training mode, the first being step 5: 1 BatchNorm normalized by "
        "running statistics that did not move"
    )


def run(model, mode, steps=20, gradient=True, optimizer=None):
    """Train for some steps; `mode(step)` sets the modes before each."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    with gb.watch(model, optimizer) as watch:
        for step in range(steps):
            mode(step)
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
    return watch


def network(norm=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), norm or nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def test_validations_that_train_is_called_after_only_at_the_next_epoch_are_found():
    model = network()
    watch = run(model, lambda step: model.train(step % 10 < 4))
    assert findings(watch) == [("warning", "1")]
    assert watch.watched.evaluation_after_training == 12


def test_a_model_that_is_in_evaluation_all_the_time_is_a_note():
    model = network()
    assert findings(run(model, lambda step: model.eval())) == [("note", "1")]


def test_a_model_of_layer_norms_is_found_by_its_dropout():
    model = network(nn.LayerNorm(8))
    assert findings(run(model, lambda step: model.train(step < 5))) == []
    model.append(nn.Dropout())
    assert findings(run(model, lambda step: model.train(step < 5))) == [("warning", "")]


@pytest.mark.parametrize("freeze", [lambda m: m[1].eval(), lambda m: m[1].eval().requires_grad_(False)])
def test_norms_in_evaluation_from_the_start_in_a_model_that_trains_are_meant(freeze):
    model = network()

    def mode(step):
        model.train()
        freeze(model)

    assert findings(run(model, mode)) == []


def test_norms_that_change_to_evaluation_in_a_model_that_trains_are_a_note():
    model = network()

    def mode(step):
        model.train()
        model[1].train(step < 10)

    assert findings(run(model, mode)) == [("note", "1")]


def test_frozen_norms_and_validations_with_gradients_are_not_found():
    model = network()
    gb.freeze(model)
    assert findings(run(model, lambda step: model.train(step < 5))) == []
    model = network()

    def mode(step):
        if step % 5 == 4:
            model.eval()
            for _ in range(3):
                model(torch.randn(16, 4))
        model.train()

    assert findings(run(model, mode)) == []


def test_attacks_in_evaluation_mode_before_each_step_are_not_found():
    model = network()

    def mode(step):
        model.eval()
        x = torch.randn(16, 4, requires_grad=True)
        model(x).square().mean().backward()
        model.train()

    assert findings(run(model, mode)) == []
