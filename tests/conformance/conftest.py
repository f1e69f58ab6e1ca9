from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.threads import one_thread


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Compute with one thread: for small tensors a second one costs more than it saves, ten times on a busy machine."""
    with one_thread():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tolerances.py quotes as measured, with CONFORMANCE_REPORT=1 (and in one process)."""
    if os.environ.get("CONFORMANCE_REPORT"):
        from gammabeta.proof.check import WORST

        terminalreporter.section("largest errors, in roundings of the magnitude")
        for (dtype, name, by), worst in sorted(WORST.items()):
            terminalreporter.line(f"{dtype:10} {name:14} {by:9} {worst:10.2f}")
