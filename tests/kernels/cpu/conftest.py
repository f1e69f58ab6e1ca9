"""The kernels' own tests: every op called by its name, held against the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.threads import one_thread

from gammabeta import kernels, ops


@pytest.fixture(autouse=True, scope="package")
def _built() -> None:
    """That nobody misses them where they ought to be: GAMMABETA_KERNELS=1, with which continuous integration asks."""
    if not ops.has_kernel("cpu"):
        pytest.skip(f"no native kernels for the CPU here: {kernels.missing}")


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Most tensors are small here; the tests of threads set their own number."""
    with one_thread():
        yield
