"""The exact claims hold for the library's norms, and are contradicted where a norm is broken."""

import itertools
import re

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.lab.claims import axes, batch_noise, unit_distribution
from gammabeta.lab.images import networks


class Broken(nn.BatchNorm1d):
    """Divides by the wrong number."""

    def __init__(self, channels, correction=0, outside=False):
        super().__init__(channels)
        self.correction, self.outside = correction, outside

    def forward(self, x):
        variance, mean = torch.var_mean(x, dim=0, correction=self.correction)
        scale = variance.sqrt() + self.eps if self.outside else (variance + self.eps).sqrt()
        return (x - mean) / scale


def test_unit_distribution_holds(experiment):
    outcome = unit_distribution.measure(experiment)
    assert outcome.verdict == "supported", outcome.sentence
    assert outcome.effects[0].name == "inputs on which the identity fails, of 234"
    # not by a bound so wide that nothing reaches it
    assert max(row[4] for row in outcome.tables[0].rows) > 1e-3


def broken_norm(monkeypatch, **how):
    whole = unit_distribution.norm

    def norm(name, channels, positions=2):
        return Broken(channels, **how) if (name, positions) == ("batch", 0) else whole(name, channels, positions)

    monkeypatch.setattr(unit_distribution, "norm", norm)


def test_unit_distribution_sees_a_variance_divided_by_n_minus_one(experiment, monkeypatch):
    broken_norm(monkeypatch, correction=1)
    outcome = unit_distribution.measure(experiment)
    assert outcome.verdict == "contradicted"
    # All but one: at mean 10⁶, spread 10⁻³ and ε = 10⁻² the difference of 3·10⁻⁶ is within the rounding error.
    assert outcome.sentence == "the identity fails on 25 of 234 inputs: BatchNorm (N, C) on 25"


def test_unit_distribution_sees_an_epsilon_outside_the_root(experiment, monkeypatch):
    broken_norm(monkeypatch, outside=True)
    assert unit_distribution.measure(experiment).verdict == "contradicted"


def test_unit_distribution_sees_a_norm_that_does_not_center(experiment, monkeypatch):
    whole = unit_distribution.norm
    monkeypatch.setattr(unit_distribution, "norm", lambda name, *rest: whole("rms" if name == "layer" else name, *rest))
    assert unit_distribution.measure(experiment).verdict == "contradicted"


def test_axes_are_as_derived(experiment):
    outcome = axes.measure(experiment)
    assert outcome.verdict == "supported", outcome.sentence
    # The table itself, as in the papers: the derivation does not come from the layers.
    blind = {norm: sum(axes.derived(norm, change) for change in axes.CHANGES) for norm in axes.NORMS}
    assert blind == {"batch": 8, "batch in evaluation": 3, "layer": 9, "group": 8, "instance": 11, "rms": 7}
    assert axes.derived("batch", "scale a channel")
    assert not axes.derived("batch", "exchange companions")
    assert axes.derived("layer", "scale a sample")
    assert not axes.derived("layer", "scale a channel")
    assert not axes.derived("group", "permute channels between groups")
    assert not axes.derived("rms", "shift everything")


def test_axes_sees_a_norm_over_other_axes(experiment, monkeypatch):
    whole = axes.layer
    monkeypatch.setattr(axes, "layer", lambda norm, eps: whole("instance" if norm == "layer" else norm, eps))
    outcome = axes.measure(experiment)
    assert outcome.verdict == "contradicted"
    assert outcome.sentence == ("2 of 66 cells are not as derived: layer: scale a channel; layer: shift a channel")


def test_axes_sees_an_epsilon_that_is_not_scaled(experiment, monkeypatch):
    whole = axes.layer
    monkeypatch.setattr(axes, "layer", lambda norm, eps: whole(norm, axes.EPS))
    outcome = axes.measure(experiment)
    assert outcome.verdict == "contradicted"


class Leaky(gb.BatchNorm1d):
    """Keeps using its companions in evaluation."""

    def forward(self, x):
        return torch.nn.functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


def test_batch_noise_sees_an_evaluation_that_depends_on_companions(experiment, monkeypatch):
    whole = networks.norm
    monkeypatch.setattr(
        networks,
        "norm",
        lambda name, channels, positions=2: Leaky(channels) if positions == 0 else whole(name, channels),
    )
    monkeypatch.setattr(batch_noise, "SIZES", (16, 32))
    outcome = batch_noise.measure(experiment)
    assert outcome.verdict == "contradicted"
    assert outcome.sentence.endswith("in evaluation companions matter in 5 runs")


def test_batch_noise_without_replacement_is_smaller_by_the_derived_factor():
    assert batch_noise.expected_without(2, 1000) == 1.0
    assert batch_noise.expected_without(1000, 1000) == 0.0
    # Means over 3 of 5 values, all ten of them: their deviation over that of 3 independent draws.
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    means = torch.stack([values[list(chosen)].mean() for chosen in itertools.combinations(range(5), 3)])
    ratio = means.std(correction=0) / (values.std(correction=0) / 3**0.5)
    assert batch_noise.expected_without(4, 6) == pytest.approx(float(ratio))  # 3 of 5 companions


def test_batch_noise_draws_the_probe_first_and_no_companion_twice():
    generator = torch.Generator().manual_seed(0)
    batches = batch_noise._without_replacement(7, 16, 20, 50, generator)
    assert (batches[:, 0] == 7).all()
    assert all(len(batch.unique()) == 16 for batch in batches)
    assert sorted(batches.unique().tolist()) == list(range(20))
    batches = batch_noise._with_replacement(7, 16, 20, 50, generator)
    assert (batches[:, 0] == 7).all()
    assert any(len(batch.unique()) < 16 for batch in batches)


def test_two_thirds_of_the_noise_of_normal_inputs_come_from_the_mean():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2000, 64, generator=generator, dtype=torch.float64)
    drawn = [batch_noise._with_replacement(probe, 256, 2000, 200, generator) for probe in range(4)]
    assert batch_noise._share_of_mean(x, drawn) == pytest.approx(2 / 3, abs=0.04)


def test_batch_noise_reports_what_the_noise_is_made_of(experiment, monkeypatch):
    monkeypatch.setattr(batch_noise, "SIZES", (16, 256))
    experiment.seed_count = 2
    outcome = batch_noise.measure(experiment)
    made_of = [effect for effect in outcome.effects if "without replacement" in effect.name]
    assert len(made_of) == 2
    assert all(effect.value == pytest.approx(1.0, abs=0.1) for effect in made_of)
    assert re.search(r"at n = 256 \d\d % of its variance come from μ and the rest from σ", outcome.sentence)
    assert set(outcome.regimes) == {effect.name for effect in outcome.effects[:2]}  # it decides nothing
