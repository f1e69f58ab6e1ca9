"""Injected shift: its moments, where it acts, and that the race measures how far outputs move."""

import pytest
import torch

from gammabeta.lab.claims import covariate_shift
from gammabeta.lab.images import injected_shift
from gammabeta.lab.images.injected_shift import Moments, hooks_on, places, shifted
from gammabeta.lab.images.networks import build


def test_a_step_shares_its_mean_and_scale_and_the_next_has_others():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    one, other = shifted(y, generator), shifted(y, generator)
    for out in (one, other):
        assert out.shape == y.shape
        assert float(out.mean(dim=0).abs().max()) < 1.02
        # the variance of s·y + m: s² + 0.1² of y's own, and 0.1²/3 of m
        assert float(out.std(dim=0).min()) > 0.99
        assert float(out.std(dim=0).max()) < 1.3
    assert float((one.mean(dim=0) - other.mean(dim=0)).abs().max()) > 0.1
    image = torch.zeros(4, 3, 2, 2)
    assert len(shifted(image, generator).flatten(2)[0, 0].unique()) == 1  # positions of a channel move together


def test_noise_acts_in_training_after_every_norm_and_not_in_evaluation(experiment):
    network = experiment.mlp(2, width=16)
    model = build(experiment.task, network, "batch", 1)
    x = experiment.task.train.x_nchw[:32]
    names = places(experiment.task, network)
    assert names == ["hidden.1", "hidden.4"]
    model.eval()
    before = model(x)
    hooks_on(model, names, True, 1)
    assert torch.equal(model(x), before)
    model.train()
    assert not torch.equal(model(x), model(x))
    # without a norm the same places exist
    plain = build(experiment.task, network, "none", 1)
    hooks_on(plain, names, False, 1)
    assert torch.equal(plain(x), plain(x))


def test_how_far_means_move_is_in_standard_deviations():
    moments = Moments()
    y = torch.tensor([[0.0, 0.0], [2.0, 4.0]])  # standard deviations of 1 and 2
    moments.look("a", y)
    moments.look("a", y + torch.tensor([1.0, 2.0]))
    moments.look("b", y)
    assert moments.moved == pytest.approx([1.0])


def test_a_race_ends_at_the_target_and_noise_moves_outputs_further(experiment):
    given = {"task": experiment.drawn(1), "network": dict(experiment.mlp(2, width=16)), "norm": "batch", "seed": 1}
    fixed = {"rate": 0.1, "batch_size": 32, "limit": 40, "every": 5, "target": 0.6}
    plain = injected_shift.race(**given, **fixed, inject=False)
    noisy = injected_shift.race(**given, **fixed, inject=True)
    assert plain["steps"] < 40
    assert noisy["moved"] > 1.25 * plain["moved"]
    assert injected_shift.race(**given, **{**fixed, "target": 1.0}, inject=False)["steps"] is None


def result(steps, moved, seeds=3):
    return [{"steps": steps + seed, "moved": moved, "error": 0.1} for seed in range(seeds)]


@pytest.mark.parametrize(
    ("none", "noisy", "verdict"),
    [
        ((100, 0.2), (30, 0.6), "contradicted"),  # more shift, and faster all the same
        ((100, 0.2), (150, 0.6), "supported"),
        ((100, 0.2), (30, 0.2), None),  # the noise does not shift more
        ((100, 0.2), (30, None), None),
    ],
)
def test_made_up_races_are_judged_right(none, noisy, verdict):
    found = covariate_shift._cause("MLP", {"none": result(*none), "batch": result(20, 0.1), "noisy": result(*noisy)})
    assert (found and found.verdict) == verdict
    assert ("MLP" in covariate_shift._of_causes({"MLP": found} if found else {})) == (verdict is not None)
