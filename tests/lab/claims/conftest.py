import pytest

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.sources import source
from gammabeta.lab.trials.store import Store


@pytest.fixture
def experiment(tmp_path):
    """Give an experiment on digits in this process, so that a test can replace a norm by a broken one."""
    digits = source("digits")
    store = Store(tmp_path)
    yield Experiment({"images": digits}, store, quick=True, jobs=1)
    store.close()
