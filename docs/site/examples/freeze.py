import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
print(gb.freeze(model))
model.train()
model(50 + torch.randn(16, 3, 8, 8))
print(model[1].running_mean)  # as before
