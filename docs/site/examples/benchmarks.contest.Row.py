import torch
from torch import nn

import gammabeta as gb
from gammabeta.benchmarks.contest import Row
from gammabeta.benchmarks.ring import layer_field

row = Row(
    "RMSNorm, evaluation", (32, 64), torch.float32, "contiguous",
    build=lambda compiled: layer_field(gb.RMSNorm(64), nn.RMSNorm(64), (32, 64), 1, "evaluation", compiled),
)  # fmt: skip
# The contestants are built when the row's turn comes, so that one row's tensors are not beside another's.
print(row.operation, row.shape, list(row.build(False).contestants))
