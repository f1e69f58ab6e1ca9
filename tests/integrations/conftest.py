"""What other parts of torch make of our layers: everything once with the kernels for every size, once for none.

The kernels are as fast as torch's ops from some size on (`kernels.WORTH_IT`). Nothing else may depend on that size, so
each test here runs with the size at 0 and at infinity.
"""

from __future__ import annotations

import pytest
import torch

from gammabeta import kernels

NEVER = 1 << 62


@pytest.fixture(params=[0, NEVER], ids=["always ours", "torch's where it can"], autouse=True)
def worth_it(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(kernels, "WORTH_IT", dict.fromkeys(kernels.WORTH_IT, request.param))
    monkeypatch.setenv("GAMMABETA_WORTH_IT", str(request.param))  # for processes that a test starts
    torch._dynamo.reset()
    torch.manual_seed(0)
    return request.param
