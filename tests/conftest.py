"""Shared by all tests: the routes that a call can take."""

import pytest
from tests.routes import ROUTES, taken


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    """As users get it; with our kernels wherever they can run; and with the reference in their place."""
    with taken(request.param, monkeypatch):
        yield request.param
