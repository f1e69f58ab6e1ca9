"""Shared by all tests: the routes that a call can take, and a torchvision that can be imported."""

import importlib.util

import pytest
from tests.routes import ROUTES, taken

from gammabeta.benchmarks.subjects.training_step import load_timm


def pytest_configure():
    """Make torchvision importable where it is built for CUDA and torch is not: transformers imports it where it is."""
    if importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision"):
        load_timm()


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    """Run a test three ways: as users call, with our kernels wherever they can run, and with the reference instead."""
    with taken(request.param, monkeypatch):
        yield request.param
