"""The batch's noise: dose and response, the equivalent rate of Dropout, and each verdict on made-up runs."""

import pytest

from gammabeta.lab.claims import noise_regularizes
from gammabeta.lab.claims.noise_regularizes import GHOST, GHOSTS, SIZES, at_dose, equivalent_dropout
from gammabeta.lab.procedure import Chosen

JITTER = (0.000, 0.001, -0.001, 0.0005, -0.0005, 0.0)


def around(value, scale=1.0):
    return [value + scale * each for each in JITTER]


def test_a_line_through_the_doses_is_found():
    doses = list(GHOSTS.values())
    assert doses == pytest.approx([1 / size - 1 / 64 for size in SIZES])
    values = {dose: [-0.5 * dose, -0.1 * dose] for dose in doses}
    assert at_dose(values, doses[0]) == pytest.approx([-0.5 * doses[0], -0.1 * doses[0]])


def test_the_equivalent_rate_is_where_the_effects_are_equal():
    rates = {0.1: around(-0.02), 0.3: around(-0.06)}
    nearest, low, high = equivalent_dropout(around(-0.04, -1.0), rates)
    assert nearest == pytest.approx(0.2, abs=0.005)
    # two jitters against each other: ± 2.57·2·0.00075/√6 over a slope of 0.2
    assert low == pytest.approx(0.19, abs=0.01)
    assert high == pytest.approx(0.21, abs=0.01)
    wide = equivalent_dropout(around(-0.04, -40.0), rates)
    assert wide[1] < 0.1
    assert wide[2] == pytest.approx(0.3)
    assert equivalent_dropout(around(0.0, 2.0), rates)[1] == 0.0
    assert equivalent_dropout(around(-0.2, -1.0), rates) is None


def found(ghost, wrong, *, lowest=0.01):
    """Make up runs on curves whose test losses differ by what is given at every training loss."""

    def result(difference, place):
        curve = [[step, lowest * 2.0 ** (9 - step), 0.3 + difference] for step in range(10)]
        curve[0][1] = max(curve[0][1], 2.0)
        return {"curve": curve, "loss": 0.3, "error": 0.1, "place": place}

    def choose(experiment, arms, replicates, score):
        assert all(settings["momentum"] == 0.9 for settings in arms.values())
        shift = {"clean|Dropout of 0.1": -0.02, "clean|Dropout of 0.3": -0.06, f"20 % wrong labels|{GHOST}": wrong}
        shift |= {f"clean|{kind}": ghost * dose / GHOSTS[GHOST] for kind, dose in GHOSTS.items()}

        def jitter(arm, place):
            return JITTER[place % 6] * (0 if arm not in shift else -1 if "Dropout" in arm else 1)

        return {
            arm: Chosen(
                [result(shift.get(arm, 0.0) + jitter(arm, place), place) for place, _ in enumerate(replicates)],
                [-3] * len(replicates),
                -3,
                {-3: 0.1},
            )
            for arm in arms
        }

    return choose


@pytest.mark.parametrize(
    ("given", "verdict", "rate"),
    [
        (found(-0.04, -0.04), "supported", 0.2),
        (found(0.04, 0.04), "contradicted", 0.0),
        (found(-0.002, 0.002), "equivalent", 0.01),
        (found(-0.04, 0.04), "mixed", 0.2),
        (found(-0.04, -0.04, lowest=0.2), "no room here", 0.2),
    ],
)
def test_made_up_runs_are_judged_right(experiment, monkeypatch, given, verdict, rate):
    monkeypatch.setattr(noise_regularizes, "choose_rates", given)
    monkeypatch.setattr(
        experiment, "grid", lambda arms, seeds, make: {arm: [{"curve": [[0, 2.0, 0.3]]}] * len(seeds) for arm in arms}
    )
    outcome = noise_regularizes.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    of = {effect.name: effect for effect in outcome.effects}
    same = of.get(f"clean: Dropout rate equivalent to {GHOST}")
    if verdict == "contradicted":
        assert same is None
        assert "no rate of Dropout tried has this effect" in outcome.sentence
    else:
        assert same.value == pytest.approx(rate, abs=0.01)
        assert same.low <= same.value <= same.high
    line = of["clean: line through all ghost sizes, at 8 images"]
    main = of[f"clean: {GHOST} minus BatchNorm"]
    assert line.value == pytest.approx(main.value, abs=0.003)


def test_without_room_nothing_is_said_about_intervals(experiment, monkeypatch):
    """Runs that reach no common training loss were compared by differences of 0 with an infinite interval."""
    monkeypatch.setattr(noise_regularizes, "choose_rates", found(0.0, 0.0, lowest=3.0))
    monkeypatch.setattr(
        experiment, "grid", lambda arms, seeds, make: {arm: [{"curve": [[0, 2.0, 0.3]]}] * len(seeds) for arm in arms}
    )
    outcome = noise_regularizes.measure(experiment)
    assert outcome.verdict == "no room here"
    assert outcome.sentence == (
        "the network does not fit its training images well enough for noise to have something to regularize"
    )


def test_a_regime_whose_runs_have_no_training_loss_in_common_has_no_room(experiment, monkeypatch):
    choose = found(-0.04, -0.04)

    def one_falls_behind(*given):
        chosen = choose(*given)
        for result in chosen[f"20 % wrong labels|{GHOST}"].results[:1]:
            result["curve"] = [[0, 2.3, 2.3], [1, 1.9, 2.0]]
        return chosen

    monkeypatch.setattr(noise_regularizes, "choose_rates", one_falls_behind)
    monkeypatch.setattr(
        experiment, "grid", lambda arms, seeds, make: {arm: [{"curve": [[0, 2.0, 0.3]]}] * len(seeds) for arm in arms}
    )
    outcome = noise_regularizes.measure(experiment)
    assert outcome.regimes == {"clean": "supported", "20 % wrong labels": "no room here"}
