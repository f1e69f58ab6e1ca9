"""Weight decay with BatchNorm and without: each verdict on made-up losses; the trial without a norm."""

from dataclasses import replace

import pytest

from gammabeta.lab.claims import weight_decay
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.procedure import Chosen
from gammabeta.lab.trials.trial import Trial

TASK = {"data": "digits", "fingerprint": "scikit-learn"}
MLP = {"kind": "mlp", "depth": 2, "width": 16, "activation": "relu", "init": "matched"}


def made_up(losses):
    """Make up the runs: test losses by (norm, schedule) without decay and with it."""

    def of_norm(experiment, seeds, norm, schedules):
        found = {}
        for schedule in schedules:
            none, decay = losses[norm, schedule]
            for arm in ("none", "decay"):
                found[schedule, arm] = [
                    {
                        "loss": (none if arm == "none" else decay) * (1 + 0.002 * place * (arm == "none")),
                        "error": 0.05,
                        "validation": {"error": 0.05},
                        "wrong": None,
                    }
                    for place, _ in enumerate(seeds)
                ]
        chosen = {s: Chosen(found[s, "none"], [-3 for _ in seeds], -3, {}) for s in schedules}
        return weight_decay.Trained(chosen, {s: [0.01 for _ in seeds] for s in schedules}, found, {}, 400)

    return of_norm


def replayed(experiment, seeds, trained):
    """The replay does as decay does."""
    found = {**trained.found, **{(s, "replay"): trained.found[s, "decay"] for s in weight_decay.SCHEDULES}}
    norms = {(s, arm): [[4.0, 1.0]] for s in weight_decay.SCHEDULES for arm in ("none", "decay")}
    return replace(trained, found=found, norms=norms)


def cases(constant, cosine, plain):
    given = {("batch", "constant"): constant, ("batch", "cosine"): cosine}
    return given | {("none", schedule): plain for schedule in weight_decay.SCHEDULES}


@pytest.mark.parametrize(
    ("losses", "verdict", "plain"),
    [
        (cases((0.3, 0.2), (0.3, 0.2), (0.3, 0.3)), "supported", "equivalent"),
        (cases((0.2, 0.3), (0.2, 0.3), (0.3, 0.2)), "contradicted", "supported"),
        (cases((0.3, 0.2), (0.2, 0.3), (0.2, 0.3)), "mixed", "contradicted"),
        (cases((0.01, 0.005), (0.01, 0.005), (0.3, 0.3)), "no room here", "equivalent"),
    ],
)
def test_made_up_losses_are_judged_right(experiment, monkeypatch, losses, verdict, plain):
    monkeypatch.setattr(weight_decay, "_of_norm", made_up(losses))
    monkeypatch.setattr(weight_decay, "_replayed", replayed)
    outcome = weight_decay.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    of = {effect.name: effect for effect in outcome.effects}
    assert of["cosine learning rate, without BatchNorm"].verdict == plain
    with_over = of["cosine learning rate, with over without"].value
    own, other = losses["batch", "cosine"], losses["none", "cosine"]
    assert with_over == pytest.approx(own[0] / own[1] / (other[0] / other[1]), rel=0.01)
    assert len([row for row in outcome.tables[0].rows if row[0] == "no normalization"]) == 2
    assert f"; without BatchNorm it is {other[0] / other[1] * 1.004:.2f}" in outcome.sentence
    assert "with a cosine one" in outcome.sentence


def test_every_replicate_chooses_its_rate_and_then_its_strength_by_validation(experiment, monkeypatch):
    """Planted: replicate r does best at 2^-(r mod 2), and there with a decay of 0.003 or 0.01."""

    def train(self, *, norm, schedule, rate, decay, seed, report, **_):
        strength = weight_decay.DECAYS[1 + seed % 2]
        loss = 0.3 * (1 if rate == 2.0 ** -(seed % 2) else 2) * (0.5 if decay == strength else 1)
        settings = {"norm": norm, "schedule": schedule, "rate": rate, "decay": decay, "seed": seed}
        return Trial(f"{__name__}:planted", {**settings, "loss": loss, "report": report})

    monkeypatch.setattr(Experiment, "train", train)
    trained = weight_decay._of_norm(experiment, experiment.seeds(4, 40), "batch", ("cosine",))
    assert trained.chosen["cosine"].exponents == [-1, 0, -1, 0]
    assert trained.strengths["cosine"] == [0.01, 0.003, 0.01, 0.003]
    assert trained.losses("cosine", "none") == pytest.approx([0.4] * 4)
    assert trained.losses("cosine", "decay") == pytest.approx([0.25] * 4)


def planted(*, loss, report, **_):
    if report == "validation":
        return {"loss": loss}
    return {"loss": loss + 0.1, "validation": {"loss": loss}}


def test_the_run_that_is_replayed_is_the_one_that_was_chosen(experiment):
    """The replay's own run under decay ends where the study's training does."""
    shared = {"network": MLP, "norm": "batch", "rate": 0.5, "decay": 0.01, "schedule": "cosine", "steps": 30, "seed": 1}
    (chosen,) = experiment.run(
        [experiment.train(**shared, batch_size=weight_decay.BATCH, images=weight_decay.IMAGES, report="test")]
    )
    own = weight_decay.decayed(task=experiment.drawn(1), **shared, report="test")
    assert own["loss"] == pytest.approx(chosen["loss"], rel=1e-3)


def test_without_a_norm_decay_shrinks_weights_too():
    base = {"task": TASK, "network": MLP, "rate": 0.1, "schedule": "constant", "steps": 20, "seed": 1, "norm": "none"}
    kept, shrunk = (weight_decay.decayed(**base, decay=decay, report="test") for decay in (0.0, 0.1))
    assert shrunk["norms"][-1] < 0.8 * kept["norms"][-1]
    assert kept["loss"] != weight_decay.decayed(**{**base, "norm": "batch"}, decay=0.0, report="test")["loss"]
