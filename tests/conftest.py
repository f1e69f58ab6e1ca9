"""Shared by all tests: the routes that a call can take."""

import pytest
from tests.routes import ROUTES, taken


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    """Run a test three ways: as users call, with our kernels wherever they can run, and with the reference instead."""
    with taken(request.param, monkeypatch):
        yield request.param
