import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
model(torch.randn(2, 3, 8, 8))
weight = model[1].weight
change = gb.adopt(model)
print(change)
print(model[1].weight is weight)  # the same objects
