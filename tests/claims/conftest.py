import pytest

from gammabeta.experiment import Experiment
from gammabeta.store import Store
from gammabeta.tasks.sources import source


@pytest.fixture
def experiment(tmp_path):
    """The digits task in this process, so that a test can put a broken norm in the place of a good one."""
    digits = source("digits")
    store = Store(tmp_path)
    yield Experiment({"images": digits}, store, quick=True, jobs=1)
    store.close()
