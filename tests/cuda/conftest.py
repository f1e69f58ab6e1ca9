"""Tests of the Triton kernels without a GPU: interpreted with TRITON_INTERPRET=1, compiled and traced without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.threads import one_thread

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Tensors are small here."""
    with one_thread():
        yield
