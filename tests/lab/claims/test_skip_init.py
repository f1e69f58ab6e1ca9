"""SkipInit and Fixup against BatchNorm: each verdict on made-up errors, and how the residual stream grows."""

import pytest

from gammabeta.lab.claims import skip_init
from gammabeta.lab.procedure import Chosen

TASK = {"data": "digits", "fingerprint": "scikit-learn"}


def found(errors):
    """Make up what `choose_rates` returns: an arm's error in percent, the same for every replicate but for rounding."""

    def choose(experiment, arms, replicates):
        assert all(settings["schedule"] == "cosine" for settings in arms.values())
        return {
            (form, arm): Chosen(
                [{"error": errors[arm] / 100 + 0.0001 * place} for place, _ in enumerate(replicates)],
                [-3] * len(replicates),
                -3,
                {-3: 0.1},
            )
            for form, arm in arms
        }

    return choose


CASES = {
    "supported": (40.0, 3.0, 3.5, 2.5),
    "contradicted": (40.0, 3.0, 30.0, 20.0),
    "mixed": (40.0, 3.0, 3.0, 20.0),
    "no room here": (4.0, 3.0, 3.0, 3.0),
}


@pytest.mark.parametrize("verdict", CASES)
def test_made_up_errors_are_judged_right(experiment, monkeypatch, verdict):
    monkeypatch.setattr(skip_init, "choose_rates", found(dict(zip(skip_init.ARMS, CASES[verdict], strict=True))))
    monkeypatch.setattr(skip_init, "forms", lambda experiment: [(2, False)])
    outcome = skip_init.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence
    assert list(outcome.regimes) == [
        "residual MLP of 2 blocks, SkipInit",
        "residual MLP of 2 blocks, Fixup",
    ]
    if verdict == "mixed":
        assert outcome.sentence == (
            "points of test error behind BatchNorm: residual MLP of 2 blocks without norms +37.0, with SkipInit +0.0 "
            "[-0.2, 0.2] (supported), which keeps 100% and with Fixup +17.0 [16.8, 17.2] (contradicted), which keeps "
            "54%"
        )


def test_the_residual_stream_grows_as_derived():
    def last(start, norm):
        network = {"kind": "residual", "depth": 8, "width": 256, "start": start, "convolutional": False}
        return skip_init.growth(task=TASK, network=network, norm=norm, seed=1)["over_input"]

    plain, batch, skip, fixed = (last(*arm) for arm in skip_init.ARMS.values())
    assert skip == fixed == [1.0] * 8
    # 2⁸ without norms: each block adds a branch of its input's mean square, with the spread of a width of 256.
    assert 2**7 < plain[-1] < 2**9
    # With BatchNorm each branch adds the same: the growth per block is even.
    added = [after - before for before, after in zip([1.0, *batch], batch, strict=False)]
    assert max(added) < 2 * min(added)


def test_a_small_run_measures_every_arm(experiment, monkeypatch):
    monkeypatch.setattr(skip_init, "forms", lambda experiment: [(1, False)])
    monkeypatch.setattr(skip_init, "EPOCHS", 1)
    monkeypatch.setattr(skip_init, "WIDTH", 8)
    experiment.seed_count = 2
    outcome = skip_init.measure(experiment)
    assert [row[1] for row in outcome.tables[0].rows] == list(skip_init.ARMS)
    assert len(outcome.effects) == 3
