import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
try:
    with gb.explained_errors(model):
        model(torch.randn(1, 8))
except ValueError as error:
    print(*getattr(error, "__notes__", []))
