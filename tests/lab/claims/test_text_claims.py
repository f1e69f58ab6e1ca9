"""The claims on text (rate_headroom, warmup, pointwise, layernorm_in_transformers): planted truths, and a tiny run."""

import numpy as np
import pytest
from tests.threads import one_thread

from gammabeta.lab.claims import layernorm_in_transformers, pointwise, rate_headroom, sequences, warmup
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.procedure import Chosen
from gammabeta.lab.sources import source
from gammabeta.lab.text import rates
from gammabeta.lab.text.rates import Grid, Width, width
from gammabeta.lab.text.training import WORST
from gammabeta.lab.trials.store import Store

REPLICATES = 3


@pytest.fixture
def experiment(tmp_path):
    store = Store(tmp_path)
    sources = {"sequences": source("strokes"), "text": source("text")}
    with one_thread():
        yield Experiment(sources, store, quick=True, jobs=1)
    store.close()


@pytest.fixture
def made():
    """Make up results of replicates that hardly differ: no two are equal, so that intervals are finite."""
    rng = np.random.default_rng(0)

    def results(loss):
        found = []
        for own in loss + 0.002 * rng.normal(size=REPLICATES):
            windows = (own + 0.01 * rng.normal(size=50)).tolist()
            found.append({"loss": own, "validation": {"loss": own}, "windows": windows, "course": [(1, own)]})
        return found

    return results


@pytest.fixture
def trough(made):
    """Make up a grid: ``loss`` within ``half`` exponents around ``best``, much more outside."""
    return lambda best, half, loss=2.0: Grid(
        {e: made(loss if abs(e - best) <= half else WORST) for e in range(best - half - 1, best + half + 2)}
    )


# --- the range of usable rates ---


def test_the_width_is_interpolated_between_grid_points():
    assert width({-3: 2.4, -2: 2.0, -1: 2.1}, 0.05) == Width(pytest.approx(0.05 / 0.4 + 0.5), False)
    assert width({-4: 3.0, -3: 2.02, -2: 2.0, -1: 2.01, 0: 3.01}, 0.05).factors == pytest.approx(
        2 + 0.03 / 0.98 + 0.04 / 1.0
    )
    assert width({-2: 2.0, -1: 2.01}, 0.05).open
    # what is good again beyond a bad rate is not part of the range
    assert width({-3: 2.001, -2: 2.5, -1: 2.0, 0: 2.5}, 0.05).factors == pytest.approx(2 * 0.05 / 0.5)


def test_each_replicate_chooses_by_its_own_validation_part():
    of_two = Grid(
        {
            -2: [{"loss": 1.0, "validation": {"loss": 2.0}}, {"loss": 1.1, "validation": {"loss": 2.5}}],
            -1: [{"loss": 1.2, "validation": {"loss": 2.2}}, {"loss": 1.3, "validation": {"loss": 2.0}}],
        }
    )
    exponents, chosen = of_two.chosen()
    assert exponents == [-2, -1]
    assert [one["loss"] for one in chosen] == [1.0, 1.3]
    assert of_two.best == -1
    assert of_two.usable(0.2) == 2
    assert of_two.usable(0.1) == 1


# --- planted truths ---


def plant(monkeypatch, claim, grid_of):
    monkeypatch.setattr(claim, "on_grid", lambda experiment, arms, *_: {name: grid_of(name) for name in arms})


@pytest.mark.parametrize(
    ("pre", "peri", "verdict"),
    [(4, 5, "supported"), (1, 1, "equivalent"), (1, 4, "mixed"), (-1, -1, "contradicted"), (1, -1, "mixed")],
)
def test_headroom_is_judged_by_the_width_of_the_range(experiment, trough, monkeypatch, pre, peri, verdict):
    halves = {"pre-norm": pre, "peri-norm": peri, "post-norm": 0}

    def grid_of(name):
        half = halves.get(name.rpartition(", ")[2], 1)
        return trough(-5, half + 2 if half >= 0 else 0)

    plant(monkeypatch, rate_headroom, grid_of)
    outcome = rate_headroom.measure(experiment)
    assert outcome.verdict == verdict
    assert set(outcome.regimes) == {"3 layers, pre-norm", "3 layers, peri-norm"}
    assert outcome.effects[0].value == pytest.approx(2 * (pre - 1) if pre >= 0 else -6, abs=0.1)


def test_headroom_has_no_room_where_nothing_learns(experiment, trough, monkeypatch):
    plant(monkeypatch, rate_headroom, lambda name: trough(-5, 2, loss=3.2))
    assert rate_headroom.measure(experiment).verdict == "no room here"


@pytest.mark.parametrize(
    ("post", "pre", "verdict"),
    [(0.5, 0.0, "supported"), (0.0, 0.0, "equivalent"), (0.5, 0.5, "contradicted"), (-0.5, 0.0, "contradicted")],
)
def test_warmup_needs_a_loss_without_it_in_post_norm_alone(experiment, trough, monkeypatch, post, pre, verdict):
    def grid_of(name):
        more = (post if "post-norm" in name else pre) if "without" in name else 0.0
        return trough(-5, 1, loss=2.0 + more)

    plant(monkeypatch, warmup, grid_of)
    outcome = warmup.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert outcome.effects[0].value == pytest.approx(post, abs=0.01)


@pytest.mark.parametrize(
    ("little", "everything", "verdict"),
    [(0.0, 0.0, "supported"), (-0.2, 0.2, "contradicted"), (0.0, 0.3, "mixed")],
)
def test_a_pointwise_function_is_judged_on_both_amounts_of_data(
    experiment, trough, monkeypatch, little, everything, verdict
):
    def grid_of(name):
        base, more = (2.6, little) if "little" in name else (2.0, everything)
        return trough(-5, 1, loss=base + (more if name.startswith("dyt") else 0.0))

    plant(monkeypatch, pointwise, grid_of)
    outcome = pointwise.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    flip = outcome.effects[-1]
    assert flip.value == pytest.approx(everything - little, abs=0.01)
    assert (flip.verdict == "supported") == (everything - little > 0.1)


def test_a_pointwise_function_has_no_room_where_data_do_not_matter(experiment, trough, monkeypatch):
    plant(monkeypatch, pointwise, lambda name: trough(-5, 1))
    assert pointwise.measure(experiment).verdict == "no room here"


LOSSES = {"none": 2.2, "padded": 2.3, "layer": 2.0, "rms": 2.0, "layer, Dropout": 1.9}


@pytest.mark.parametrize(
    ("changed", "time", "coarse", "verdict"),
    [
        ({}, 1.5, 2.4, "supported"),
        ({"padded": 1.9}, 1.5, 2.4, "contradicted"),
        ({"rms": 2.1}, 1.5, 2.4, "contradicted"),
        ({}, 0.5, 2.4, "contradicted"),
        ({}, 1.5, 2.0, "no room here"),
    ],
)
def test_language_models_take_layernorm_by_four_conditions(
    experiment, made, monkeypatch, changed, time, coarse, verdict
):
    losses = {**LOSSES, **changed}

    def trained(experiment, arms, *_):
        return {
            name: Chosen(
                made(losses[name]), [-5] * 3, -5,
                {-5: coarse if name == "none" else 2.0},
            )
            for name in arms
        }  # fmt: skip

    seconds = [{"layer": time * scale, "rms": 1.0, "none": 1.0, "padded": 1.0} for scale in (1.0, 1.001, 0.999)]
    monkeypatch.setattr(layernorm_in_transformers, "trained", trained)
    monkeypatch.setattr(layernorm_in_transformers, "timed", lambda *_: seconds)
    of_norms = [{f"{arm}, {whose}": of[arm] for arm in ("layer", "rms") for whose in ("gammabeta", "torch")}
                for of in seconds]  # fmt: skip
    monkeypatch.setattr(Experiment, "records", lambda self, trials: [{"timing": timing} for timing in of_norms])
    outcome = layernorm_in_transformers.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    dropout = next(effect for effect in outcome.effects if "Dropout" in effect.name)
    assert (dropout.value, dropout.verdict) == (pytest.approx(0.1, abs=0.01), "supported")


@pytest.mark.parametrize(
    ("gru", "transformer", "verdict"),
    [(20, 20, "supported"), (20, -20, "mixed"), (-20, -20, "contradicted"), (20, 0, "mixed"), (0, 0, "equivalent")],
)
def test_layernorm_on_sequences_is_judged_as_deployed(experiment, monkeypatch, gru, transformer, verdict):
    gains = {"GRU": gru, "Transformer, pre-norm": transformer}

    def trained(experiment, arms, *_):
        found = {}
        for network, gain in gains.items():
            for arm in arms:
                error = 0.3 if arm == "layer" else 0.3 + gain / 100
                one = {"moving_error": error, "error": 0.3, "wrong": None, "moving_wrong": None}
                found[network, arm] = Chosen([{**one, "validation": one}] * 4, [-5] * 4, -5, {-5: error})
        return found

    monkeypatch.setattr(sequences, "trained", trained)
    monkeypatch.setattr(experiment, "grid", lambda cells, *_: {
        cell: [{"training": 1.0 if cell[1] == "padded" else 0.0, "evaluation": 0.0}] for cell in cells
    })  # fmt: skip
    outcome = sequences.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert outcome.effects[0].value == pytest.approx(gru)
    assert {effect.value for effect in outcome.effects if "exact" in effect.name} == {0.0}


# --- a tiny run ---


def test_every_claim_on_text_runs(experiment, monkeypatch):
    tiny = {"width": 8, "layers": 1, "context": 8, "batch": 2, "steps": 3}
    whole = rates.make
    monkeypatch.setattr(
        rates, "make", lambda experiment, settings, *given: whole(experiment, {**settings, **tiny}, *given)
    )
    monkeypatch.setattr(rates, "RATES", (-5,))
    experiment.seed_count = 2
    for claim in (rate_headroom, warmup, pointwise):
        outcome = claim.measure(experiment)
        assert outcome.verdict == "no room here"
        assert outcome.trials
        assert outcome.to_json()["effects"]
