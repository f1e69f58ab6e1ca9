"""The landscape's measure: exact on a surface known by formula, independent of irrelevant scales.

A norm that does nothing is not smoother.
"""

import pytest
import torch
from tests.lab.claims.idle import Shuffle
from torch import nn

from gammabeta.lab.claims import covariate_shift, smoother_landscape
from gammabeta.lab.claims.smoother_landscape import STEPS, Surface
from gammabeta.lab.images import networks
from gammabeta.lab.images.networks import build
from gammabeta.lab.procedure import Chosen


@pytest.fixture
def surface(experiment):
    """A BatchNorm network in float64 with random γ and β, and a batch of it."""

    def made(network=None, norm="batch"):
        model = build(experiment.task, network or experiment.mlp(3, width=24), norm, 1).double()
        generator = torch.Generator().manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 2.0, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
        train = experiment.task.train
        return Surface(model, train.x_nchw[:64].double(), train.y_n[:64], 0)

    return made


def close(measures):
    # float64, some hundred operations, and a range that is a difference of two losses
    return {form: pytest.approx(measures[form], rel=1e-8) for form in smoother_landscape.FORMS}


def of(walk):
    return {form: walk[form] for form in smoother_landscape.FORMS}


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_weights_that_the_norm_makes_irrelevant_do_not_change_the_measure(experiment, surface, kind):
    found = surface(experiment.convolutional if kind == "resnet" else None)
    before, unit = of(found.walk()), found.unit()
    absolute = of(found.walk(unit))
    pairs = smoother_landscape.in_front_of_norms(found.model, found.x_nchw)
    assert len(pairs) == {"mlp": 3, "resnet": 5}[kind]
    smoother_landscape.rescale(pairs)
    assert of(found.walk()) == close(before)
    assert smoother_landscape.moved(before, of(found.walk())) < smoother_landscape.TOLERANCE
    # the control must catch this
    assert smoother_landscape.moved(absolute, of(found.walk(unit))) > 10 * smoother_landscape.TOLERANCE


def test_relu_without_a_norm_is_measured_alike_at_any_balance_of_its_layers(surface):
    found = surface(norm="none")
    before = of(found.walk())
    first, second = found.model.hidden[0], found.model.hidden[3]
    with torch.no_grad():
        first.weight.mul_(5)  # biases are 0 at the start: relu(5 a) = 5 relu(a)
        second.weight.div_(5)
    assert of(found.walk()) == close(before)


def test_a_walk_leaves_the_weights_and_the_statistics_as_they_were(surface):
    found = surface()
    before = {name: value.clone() for name, value in found.model.state_dict().items()}
    found.walk()
    assert all(torch.equal(value, before[name]) for name, value in found.model.state_dict().items())


class Quadratic(Surface):
    """½ k ‖w‖² − w·a: the gradient turns in proportion to the step."""

    def __init__(self, curvature):
        self.weights = [nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))]
        self.curvature = curvature

    def loss(self):
        (w,) = self.weights
        return self.curvature * (w**2).sum() / 2 - 7 * self.curvature * w.sum()


@pytest.mark.parametrize("curvature", [0.1, 2.0])
def test_the_measures_of_a_quadratic_are_those_of_the_formula(curvature):
    found = Quadratic(curvature)
    walk = found.walk()
    # ‖w‖ = 5, so a step η is 5 η long: ½ k (5 η)² beyond the line, and a turn of k · 5 η over ‖k (w − 7)‖ = 5 k
    assert walk["loss"] == pytest.approx(curvature * (5 * STEPS[-1]) ** 2 / 2)
    assert walk["gradient"] == pytest.approx(STEPS[-1])
    assert of(found.walk(5.0)) == pytest.approx(of(walk))
    assert found.walk(10.0)["loss"] == pytest.approx(4 * walk["loss"])


def test_both_arms_are_looked_at_where_the_loss_is_the_level(surface):
    found = surface()
    with torch.no_grad():
        height = float(found.loss())
    after = [parameter.detach().clone() for parameter in found.model.parameters()]
    before = [value + 0.3 for value in after]
    smoother_landscape._set(list(found.model.parameters()), before)
    with torch.no_grad():
        level = (height + float(found.loss())) / 2
    assert level > height
    smoother_landscape.lower_to(found, before, after, level)
    with torch.no_grad():
        assert float(found.loss()) == pytest.approx(level, abs=1e-6)


@pytest.fixture
def small(monkeypatch, experiment):
    monkeypatch.setattr(smoother_landscape, "networks", lambda experiment: [experiment.mlp(3, width=24)])
    return experiment


def test_doing_nothing_smooths_nothing(small, monkeypatch):
    monkeypatch.setattr(
        networks, "norm", lambda name, channels, *_: Shuffle(channels) if name == "batch" else nn.Identity()
    )
    outcome = smoother_landscape.measure(small)
    # Nothing in it makes a weight's scale irrelevant, so the control cannot be run.
    assert outcome.verdict == "no room here"
    assert outcome.room.control.endswith("by nothing: there are none")
    # And it would not have been called smoother: the interval holds 1, and at equal rates neither is.
    assert all(effect.low < 1 < effect.high for effect in outcome.effects[:2])
    equal = [effect for effect in outcome.effects if effect.name.startswith("equal learning rates, ")]
    assert all(0.5 < effect.value < 2 for effect in equal)


def test_the_control_ends_a_measure_that_sees_scales(small, monkeypatch):
    whole = Surface.walk
    monkeypatch.setattr(Surface, "walk", lambda self, unit=None: whole(self, 10.0))
    outcome = smoother_landscape.measure(small)
    assert outcome.verdict == "no room here"
    assert outcome.sentence.startswith("the measure depends on the size of weights")


def test_a_level_that_is_not_reached_is_not_judged(small, monkeypatch):
    monkeypatch.setattr(smoother_landscape, "LEVELS", (1.0, 1e-9))
    outcome = smoother_landscape.measure(small)
    assert [row[1] for row in outcome.tables[0].rows] == ["1", "1", "1"]
    monkeypatch.setattr(smoother_landscape, "LEVELS", (1e-9,))
    outcome = smoother_landscape.measure(small)
    assert outcome.verdict == "no room here"
    assert outcome.sentence.startswith("no network has room")


def test_the_best_rates_are_those_of_covariate_shift(small, monkeypatch):
    """Then both claims share the trials."""
    assert smoother_landscape.TUNED_BY == covariate_shift.STEPS


class Constant(nn.Module):
    """A layer whose float32 constant ``.double()`` does not convert."""

    def __init__(self, casts):
        super().__init__()
        self.layer, self.casts = nn.Linear(64, 10), casts
        self.mixing = torch.eye(64)

    def forward(self, x):
        x = x.flatten(1)
        return self.layer(x).float() if self.casts else self.layer(x @ self.mixing)


@pytest.mark.parametrize("casts", [False, True])
def test_a_model_that_does_not_compute_in_float64_is_walked_in_float32(experiment, casts):
    x = experiment.task.train.x_nchw[:4]
    model, given = smoother_landscape.in_double(Constant(casts), x)
    assert given.dtype == torch.float32
    assert model(given).dtype == torch.float32
    model, given = smoother_landscape.in_double(build(experiment.task, experiment.mlp(2), "batch", 1), x)
    assert model(given).dtype == torch.float64


def test_equal_rates_are_compared_beside_the_best_ones(small, monkeypatch):
    """At the other's rate BatchNorm is another arm; it decides nothing."""
    monkeypatch.setattr(smoother_landscape, "best_rates", lambda *_: RATES)
    monkeypatch.setattr(smoother_landscape, "LEVELS", (1.0,))
    small.seed_count = 2
    outcome = smoother_landscape.measure(small)
    rates = {(row[2], row[3]) for row in outcome.tables[0].rows}
    assert {("BatchNorm", 2.0**-2), ("BatchNorm", 2.0**-4), ("no normalization", 2.0**-4)} == rates
    equal = [effect for effect in outcome.effects if effect.name.startswith("equal learning rates, ")]
    assert len(equal) == len(outcome.effects) / 2
    assert "; at equal learning rates " in outcome.sentence


RATES = {("MLP 3 layers relu", norm): Chosen([], [e, e], e, {}) for norm, e in (("none", -4), ("batch", -2))}


def test_every_replicate_is_walked_at_the_rate_that_it_chose(small, monkeypatch):
    rates = {("MLP 3 layers relu", norm): Chosen([], [-3, -2], -3, {}) for norm in ("none", "batch")}
    monkeypatch.setattr(smoother_landscape, "best_rates", lambda *_: rates)
    monkeypatch.setattr(smoother_landscape, "LEVELS", (1.0,))
    small.seed_count = 2
    trials = smoother_landscape.measure(small).trials
    assert {(trial.settings["seed"], trial.settings["rate"]) for trial in trials} == {(1, 2.0**-3), (2, 2.0**-2)}
    assert {trial.settings["task"]["split"] for trial in trials} == {1, 2}
