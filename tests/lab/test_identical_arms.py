"""Identical arms, really trained: the small form of what docs/error_rates.md measures whole."""

import pytest
from tests.threads import one_thread

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.identical_arms import contests, trained
from gammabeta.lab.sources import source
from gammabeta.lab.trials.store import Store


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("identical"))
    experiment = Experiment({"images": source("digits")}, store)
    network = experiment.mlp(1, width=8)
    with one_thread():
        yield experiment, trained(experiment, network, "batch", 3, range(1, 17), steps=60)
    store.close()


def test_names_share_the_splits_and_differ_in_initialization_and_order(measured):
    experiment, results = measured
    assert {name: len(own) for name, own in results.items()} == {"arm 0": 16, "arm 1": 16, "arm 2": 16}
    tested = [trial.settings for trial in experiment.trials if trial.settings["report"] == "test"]
    of_split = {split: {own["seed"] for own in tested if own["task"]["split"] == split} for split in range(1, 17)}
    assert all(seeds == {100 * split, 100 * split + 1, 100 * split + 2} for split, seeds in of_split.items())


def test_identical_arms_are_hardly_ever_told_apart(measured):
    rates = contests(*measured, contests=100, replicates=5)
    assert rates.contests == rates.equivalent + rates.inconclusive + rates.wrong
    assert rates.decided <= 12
    assert rates.another <= 12
    assert rates.wrong == 0
