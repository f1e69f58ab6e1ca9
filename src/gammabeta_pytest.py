"""The pytest plugin, beside the package: pytest imports it at every start, and the package would import torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def norm_check() -> Callable[..., Any]:
    """Check a model's normalization: `norm_check(model, inputs)` fails the test where `gammabeta.check` finds errors.

    It is `gammabeta.testing.assert_healthy`, with the same options.
    """
    from gammabeta.testing import assert_healthy

    return assert_healthy
