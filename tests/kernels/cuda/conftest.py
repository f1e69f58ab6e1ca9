"""Tests of the Triton kernels without a GPU: interpreted with TRITON_INTERPRET=1, compiled and traced without it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.threads import one_thread

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Use one thread, as tensors are small here."""
    with one_thread():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With CUDA_REPORT=1, print the table of the kernels' machine code for `benchmarks/results/`."""
    if os.environ.get("CUDA_REPORT"):
        from tests.kernels.cuda.test_compiled import report

        terminalreporter.section("machine code for compute capability 9.0")
        for line in report():
            terminalreporter.line(line)
