"""The kernels' own tests: every op is called by its name and compared with the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.threads import one_thread

from gammabeta import kernels, ops


@pytest.fixture(autouse=True, scope="package")
def _built() -> None:
    """Skip where the kernels are not built. Continuous integration asks for them with GAMMABETA_KERNELS=1."""
    if not ops.has_kernel("cpu"):
        pytest.skip(f"no native kernels for the CPU here: {kernels.missing}")


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Use one thread, as most tensors are small here. The tests of threads set their own number."""
    with one_thread():
        yield
