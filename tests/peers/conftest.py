from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from tests.routes import OURS, taken
from tests.threads import one_thread

from gammabeta import kernels

ROUTES = ("ours", "torch's")


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Our ops in every call; and torch's in every call that may be left to them, whatever its size."""
    if request.param == "ours":
        with taken(OURS[0]):
            yield request.param
        return
    monkeypatch.setattr(kernels, "WORTH_IT", dict.fromkeys(kernels.WORTH_IT, math.inf))
    yield request.param


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Tensors are small here: waking a second thread costs more than it does."""
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """torch's entries draw their tensors from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
