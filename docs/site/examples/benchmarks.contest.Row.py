import torch
from torch import nn

import gammabeta as gb
from gammabeta.benchmarks.contest import Row, contest
from gammabeta.benchmarks.ring import layer_field

shape = (32, 64)
row = Row(
    "LayerNorm, step", shape, torch.float32, "contiguous",
    build=lambda compiled: layer_field(gb.LayerNorm(64), nn.LayerNorm(64), shape, 1, "step", compiled),
)  # fmt: skip
result = contest(row, threads=torch.get_num_threads(), rounds=5, compiled=False)
for name, (low, middle, high) in result.seconds.items():
    print(f"{name:6} {1e6 * middle:.0f} µs ({1e6 * low:.0f} to {1e6 * high:.0f})")
