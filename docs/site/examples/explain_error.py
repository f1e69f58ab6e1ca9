import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
try:
    model(torch.randn(1, 8))
except ValueError as error:
    print(gb.explain_error(error, model))
