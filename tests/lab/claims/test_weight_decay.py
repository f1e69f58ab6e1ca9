"""Weight decay with BatchNorm and without: each verdict on made-up losses; the trial without a norm."""

import pytest

from gammabeta.lab.claims import weight_decay

TASK = {"data": "digits", "fingerprint": "scikit-learn"}
MLP = {"kind": "mlp", "depth": 2, "width": 16, "activation": "relu", "init": "matched"}


def made_up(losses):
    """Make up the runs: test losses by (norm, schedule) without decay and with it; the replay does as decay does."""

    def of_norm(experiment, seeds, norm, arms, schedules):
        found = {}
        for schedule in schedules:
            none, decay = losses[norm, schedule]
            for arm in arms:
                found[schedule, arm] = [
                    {
                        "loss": (none if arm == "none" else decay) * (1 + 0.002 * place * (arm == "none")),
                        "error": 0.05,
                        "train_error": 0.0,
                        "norms": [4.0, 1.0],
                    }
                    for place, _ in enumerate(seeds)
                ]
        return weight_decay.Trained(dict.fromkeys(schedules, -3), dict.fromkeys(schedules, 0.01), found, 400)

    return of_norm


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


def test_without_a_norm_decay_shrinks_weights_too():
    base = {"task": TASK, "network": MLP, "rate": 0.1, "schedule": "constant", "steps": 20, "seed": 1, "norm": "none"}
    kept, shrunk = (weight_decay.decayed(**base, decay=decay, report="test") for decay in (0.0, 0.1))
    assert shrunk["norms"][-1] < 0.8 * kept["norms"][-1]
    assert kept["loss"] != weight_decay.decayed(**{**base, "norm": "batch"}, decay=0.0, report="test")["loss"]
