import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.check import ForwardError

try:
    gb.check(nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)), torch.randn(8, 5))
except ForwardError as error:
    print(error)
