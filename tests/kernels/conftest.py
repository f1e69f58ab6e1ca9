"""The kernels' own tests: every op called by its name, held against the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gammabeta import kernels, ops


@pytest.fixture(autouse=True, scope="package")
def _built() -> None:
    """That nobody misses them where they ought to be: GAMMABETA_KERNELS=1, with which continuous integration asks."""
    if not ops.has_kernel("cpu"):
        pytest.skip(f"no native kernels for the CPU here: {kernels.missing}")


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Most tensors are small here; the tests of threads set their own number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
