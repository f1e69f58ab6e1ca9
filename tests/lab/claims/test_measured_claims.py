"""The race to a target, and small pieces of other claims."""

import math

import pytest
from tests.lab.claims.idle import Shuffle
from torch import nn

from gammabeta.lab import race
from gammabeta.lab.claims import faster_convergence, gradient_flow, higher_learning_rate
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images import networks
from gammabeta.lab.outcome import Room
from gammabeta.lab.procedure import Chosen
from gammabeta.lab.race import Race
from gammabeta.lab.trials.trial import Trial


@pytest.fixture
def tiny(monkeypatch, experiment):
    """One small network, and a BatchNorm that only shuffles channels."""
    monkeypatch.setattr(
        networks, "norm", lambda name, channels, *_: Shuffle(channels) if name == "batch" else nn.Identity()
    )
    monkeypatch.setattr(race, "networks", lambda experiment: [experiment.mlp(3, width=24)])
    return experiment


def test_the_trials_at_the_chosen_rates_are_run_once_for_both_claims(tiny):
    higher_learning_rate.measure(tiny)
    before = len(tiny.store)
    faster_convergence.measure(tiny)
    assert len(tiny.store) - before < 20


def race_of(experiment, exponents, steps):
    """Make up a race in which each replicate chose these exponents and took so many steps, by arm."""
    chosen = {
        norm: Chosen([{"steps": taken, "accuracy": [[0, 0.1]]} for taken in steps[norm]], exponents[norm], -3, {})
        for norm in race.ARMS
    }
    return Race(
        experiment.mlp(3), {norm: {"norm": norm, "target": 0.8} for norm in race.ARMS}, chosen, Room(True, ""), True
    )


def test_every_replicate_chooses_its_own_rate_by_its_own_steps(experiment, monkeypatch):
    """Planted: replicate r is fastest at 2^-(2 + r mod 2) with BatchNorm, and at 2^-4 without."""

    def train(self, *, norm, rate, seed, **_):
        best = -4 if norm == "none" else -2 - seed % 2
        steps = (100 if norm == "none" else 40) + 10 * abs(math.log2(rate) - best)
        return Trial(f"{__name__}:planted", {"steps": steps, "seed": seed, "norm": norm, "rate": rate})

    monkeypatch.setattr(Experiment, "train", train)
    monkeypatch.setattr(race, "networks", lambda experiment: [experiment.mlp(3)])
    (found,) = race.races(experiment, experiment.seeds(4, 10))
    assert found.chosen["batch"].exponents == [-3, -2, -3, -2]
    assert found.chosen["none"].exponents == [-4] * 4
    assert found.room.holds
    monkeypatch.setattr(faster_convergence, "_step_times", lambda *_: dict.fromkeys([(0, "none"), (0, "batch")], 1.0))
    outcome = faster_convergence.measure(experiment)
    assert outcome.verdict == "inconclusive"  # no spread, so that nothing is known of other replicates
    assert outcome.effects[0].value == pytest.approx(2.5)
    # at the unnormalized arm's rates BatchNorm takes 10 or 20 steps more
    assert outcome.effects[2].value == pytest.approx(math.sqrt(100 / 50 * 100 / 60))


def planted(*, steps, **_):
    return {"steps": steps, "accuracy": [[0, 0.1], [5, 0.9]]}


@pytest.mark.parametrize(
    ("none", "batch", "verdict"),
    [
        ((100, 110, 90, 105), (40, 45, 41, 44), "supported"),
        ((40, 45, 41, 44), (100, 110, 90, 105), "contradicted"),
        ((40, 45, 41, 44), (41, 44, 41, 44), "equivalent"),
        # Student's interval alone is [1.31, 1.85]: what overlapping validation splits hold in common widens it
        ((60, 75, 60, 68), (42, 42, 42, 42), "inconclusive"),
    ],
)
def test_made_up_steps_are_judged_right(experiment, monkeypatch, none, batch, verdict):
    of = {"none": list(none), "batch": list(batch)}
    made_up = race_of(experiment, dict.fromkeys(of, [-3] * 4), of)
    runs = {(0, norm, whose): made_up.chosen[norm].results for norm in of for whose in of}
    monkeypatch.setattr(faster_convergence, "races", lambda *_: [made_up])
    monkeypatch.setattr(faster_convergence, "_runs", lambda *_: runs)
    monkeypatch.setattr(faster_convergence, "_step_times", lambda *_: dict.fromkeys([(0, "none"), (0, "batch")], 1.0))
    outcome = faster_convergence.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence


def test_without_room_there_is_no_verdict(tiny, monkeypatch):
    def untrained(experiment, replicates):
        of = dict.fromkeys(race.ARMS, [None] * len(replicates))
        made_up = race_of(experiment, dict.fromkeys(race.ARMS, [-4] * len(replicates)), of)
        settings = {
            norm: {"network": dict(made_up.network), "norm": norm, "batch_size": 32, "steps": 1, "target": 0.8}
            for norm in of
        }
        return [Race(made_up.network, settings, made_up.chosen, Room(False, "accuracy 0.10"), trains=False)]

    monkeypatch.setattr(faster_convergence, "races", untrained)
    monkeypatch.setattr(higher_learning_rate, "races", untrained)
    for claim in (faster_convergence, higher_learning_rate):
        assert claim.measure(tiny).verdict == "no room here"


@pytest.fixture
def planted_rates(experiment, monkeypatch):
    """Plant exponents of the largest rates without and with BatchNorm, one pair per replicate."""

    def plant(*pairs):
        same = dict.fromkeys(race.ARMS, [50.0] * len(pairs))
        race_ = race_of(experiment, {"none": [-4] * len(pairs), "batch": [-2] * len(pairs)}, same)
        monkeypatch.setattr(higher_learning_rate, "races", lambda *_: [race_])
        flat = [exponent for of_norm in zip(*pairs, strict=True) for exponent in of_norm]
        monkeypatch.setattr(higher_learning_rate, "largest", lambda *_: flat)
        experiment.seed_count = len(pairs)
        return higher_learning_rate.measure(experiment)

    return plant


@pytest.mark.parametrize(
    ("pairs", "verdict", "ratio"),
    [
        ([(-4, 0), (-4, 1), (-4, 0), (-3, 1)], "supported", 2**4.25),
        ([(0, -4), (1, -4), (0, -4), (1, -3)], "contradicted", 2**-4.25),
        ([(-4, -2), (-4, -3), (-4, -2), (-4, -3)], "inconclusive", 2**1.5),
        # a quarter of the pairs ends at the grid's edge: left out
        ([(-4, 0), (-4, 1), (None, 0), (-3, 1)], "supported", 2 ** (13 / 3)),
    ],
)
def test_ratios_of_searches_that_ended_within_the_grid(planted_rates, pairs, verdict, ratio):
    outcome = planted_rates(*pairs)
    assert outcome.verdict == verdict, outcome.sentence
    assert outcome.effects[0].value == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([(None, 0)] * 8 + [(-4, 0)] * 2, "supported"),
        ([(0, None)] * 8 + [(0, -4)] * 2, "contradicted"),
        ([(-4, 19)] * 10, "supported"),
        ([(None, 0)] * 3, "inconclusive"),  # three of three happen by chance in a quarter of cases
        ([(None, None)] * 10, "inconclusive"),
        ([(19, 19)] * 10, "inconclusive"),
        ([(None, -16)] * 10, "inconclusive"),  # how far below the grid's end is not known
    ],
)
def test_searches_at_the_grids_edge_are_no_ratio(planted_rates, pairs, verdict):
    outcome = planted_rates(*pairs)
    assert outcome.verdict == verdict, outcome.sentence
    assert outcome.effects == []
    assert "no ratio" in outcome.sentence
    assert " times" not in outcome.sentence


@pytest.mark.parametrize(
    ("first", "last", "expected"), [(1e-9, 1.0, -9.0), (0.0, 1.0, None), (1.0, float("inf"), None)]
)
def test_decades(first, last, expected):
    assert gradient_flow.decades(first, last) == pytest.approx(expected)


def test_the_growth_of_the_gradient_is_its_slope_per_layer():
    assert gradient_flow.growth([1.211**layer for layer in range(19, 0, -1)]) == pytest.approx(math.log(1.211))
    assert pytest.approx(math.log(1.211), abs=1e-3) == gradient_flow.THEORY


def test_relu_with_batch_norm_grows_as_derived_and_a_norm_that_does_nothing_does_not(experiment, monkeypatch):
    found = gradient_flow._steepness(experiment)
    assert (found.verdict, found.null) == ("supported", 1.0)
    monkeypatch.setattr(networks, "norm", lambda name, channels, *_: Shuffle(channels))
    experiment.seed = 1
    assert gradient_flow._steepness(experiment).verdict == "contradicted"


def test_cells_that_contradict_each_other_are_mixed_and_even_ones_do_not_count(experiment, monkeypatch):
    """As measured: sigmoid is relieved, relu is made worse, tanh is even either way; the median cell would say one."""
    uneven = {"sigmoid": (9.0, 0.3), "relu": (0.2, 1.5), "tanh": (0.1, 0.2)}  # decades without BatchNorm and with it

    def runs(experiment, regimes, seeds):
        return {
            (regime, norm): [
                {"decades": [size + 0.02 * (norm == "none") * (place % 2)] * 2, "profiles": [[1.0, 1.0]] * 2}
                for place, _ in enumerate(seeds)
            ]
            for regime in regimes
            for norm, size in zip(gradient_flow.NORMS, uneven[regime[0]], strict=True)
        }

    monkeypatch.setattr(gradient_flow, "_runs", runs)
    outcome = gradient_flow.measure(experiment)
    assert outcome.verdict == "mixed"
    assert outcome.to_json()["tally"] == "supported in 8 of 16 regimes, contradicted in 8"
    assert {outcome.regimes[name] for name in outcome.regimes if name.startswith("tanh")} == {"no room here"}
    assert "tanh with" in outcome.sentence
    assert "4 without room" in outcome.sentence
    monkeypatch.setitem(uneven, "relu", (2.0, 0.2))
    assert gradient_flow.measure(experiment).verdict == "supported"
