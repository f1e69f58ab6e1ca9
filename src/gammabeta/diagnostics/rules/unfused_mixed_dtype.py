"""An RMSNorm whose input has another dtype than its weight, which torch runs unfused.

What it does: Finds torch's RMSNorm called on 16 bits with a float32 weight, or the other way round.

Why it matters: torch's fused kernel, which exists for GPUs, takes a single dtype only, as torch warns once. With two
dtypes the norm runs as half a dozen operations, each a pass over memory.

Example: A model in bfloat16 whose norms were left in float32.

Use instead: `gammabeta.adopt`: one kernel, whatever the weight's dtype.

Evidence: tests/diagnostics/rules/test_probed_rules.py: torch warns for the flagged example and not for the clean one.
The flagged example takes more than four operations, and one when adopted.

Limits: LayerNorm, GroupNorm and BatchNorm take float32 parameters beside 16 bits as they are on a CPU, or raise, which
`gammabeta.explain_error` explains. Under autocast, dtypes differ without harm where the cast comes first.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.flow import calls_of
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.surgery.adopt import adopt

severity = "warning"
sees = "D"


def check(record: Record) -> Iterator[Match]:
    assert record.model is not None
    found: set[str] = set()
    for norm, _, x in calls_of(record, "rms"):
        if type(norm.module) is not nn.RMSNorm or norm.weight is None or norm.name in found:
            continue
        if x.dtype == norm.weight.dtype:
            continue
        found.add(norm.name)
        given, own = (str(dtype).removeprefix("torch.") for dtype in (x.dtype, norm.weight.dtype))
        message = f"its input is {given}, its weight {own}: torch runs it unfused, each operation a pass over memory"
        fix = Fix(
            f"gammabeta.adopt(model, where={norm.name!r})", partial(adopt, record.model, where=[*norm.names])
        )  # fmt: skip
        yield Match(norm.name, message, {"input": given, "weight": own}, fix)


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(8, 16, dtype=torch.bfloat16), nn.RMSNorm(16))
    return Example(model, where=("1",), inputs=torch.randn(4, 8, dtype=torch.bfloat16))


def clean() -> Example:
    model = nn.Sequential(nn.Linear(8, 16), nn.RMSNorm(16)).bfloat16()
    return Example(model, inputs=torch.randn(4, 8, dtype=torch.bfloat16))
