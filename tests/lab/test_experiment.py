"""The experiment: each result of a grid is filed under its arm."""

import pytest

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.trials.store import Store
from gammabeta.lab.trials.trial import Trial


@pytest.fixture
def experiment(tmp_path):
    store = Store(tmp_path)
    yield Experiment({}, store, jobs=1)
    store.close()


def said(**settings):
    """Return the settings of a trial, and their number as its time."""
    return {**settings, "timing": {"seconds": len(settings)}}


def made(arm, seed):
    return Trial(f"{__name__}:said", {"arm": arm, "seed": seed, "steps": {"a": 1, "b": 9}[arm]})


def test_a_grid_files_every_result_under_its_arm_in_the_order_of_the_replicates(experiment):
    # Longer trials run first, and one is on disk already: neither moves a result.
    experiment.run([made("a", 2)])
    experiment.trials = []
    found = experiment.grid(["a", "b"], [3, 2, 1], made)
    assert list(found) == ["a", "b"]
    assert [(result["arm"], result["seed"]) for arm in found for result in found[arm]] == [
        (arm, seed) for arm in ("a", "b") for seed in (3, 2, 1)
    ]
    assert [trial.settings for trial in experiment.trials] == [
        made(arm, seed).settings for arm in ("a", "b") for seed in (3, 2, 1)
    ]
    records = experiment.grid_of_records(["b"], [1], made)
    assert records["b"][0]["timing"] == {"seconds": 3}
    assert records["b"][0]["result"] == found["b"][2]


def test_a_grid_of_equal_arms_is_refused(experiment):
    with pytest.raises(ValueError, match=r"^grid: expected arms that differ, got \['a', 'a'\]\.$"):
        experiment.grid(["a", "a"], [1], made)
    assert experiment.trials == []
