import pytest

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.sources import source
from gammabeta.lab.trials.store import Store


@pytest.fixture
def experiment(tmp_path):
    """The digits task in this process, so that a test can put a broken norm in the place of a good one."""
    digits = source("digits")
    store = Store(tmp_path)
    yield Experiment({"images": digits}, store, quick=True, jobs=1)
    store.close()
