"""Assertions about models, for the tests of a project; as a pytest fixture they are `norm_check`."""

from __future__ import annotations

from typing import Any

from torch import nn

from gammabeta.arguments import did_you_mean
from gammabeta.diagnostics.check import check
from gammabeta.diagnostics.findings import SEVERITIES, Diagnosis


def assert_healthy(model: nn.Module, inputs: Any = None, *, fail_on: str = "error", **options: Any) -> Diagnosis:
    """Assert that `gammabeta.check` finds nothing of at least a severity.

    Args:
        model, inputs: as `gammabeta.check` takes them.
        fail_on: the least severe findings that fail: "error", "warning" or "note", as `--fail-on` of the command line.
        options: further arguments of `gammabeta.check`: loader, forward, optimizer, batch_size, select, ignore, intent.

    Returns:
        The `Diagnosis`, whose less severe findings remain.

    Raises:
        AssertionError: something was found; the message is the diagnosis.
        ValueError: there is no such severity.
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    if fail_on not in SEVERITIES:
        hint = did_you_mean(str(fail_on), SEVERITIES, 'use "error".')
        raise ValueError(f"assert_healthy: expected fail_on as {', '.join(SEVERITIES)}, got {fail_on!r}: {hint}")
    diagnosis = check(model, inputs, **options)
    grave = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    count = sum(finding.severity in grave for finding in diagnosis.findings)
    if count:
        raise AssertionError(
            f"assert_healthy: expected no finding of severity {' or '.join(grave)}, got {count}:\n{diagnosis}"
        )
    return diagnosis
