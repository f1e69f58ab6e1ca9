import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
images = 5 + torch.randn(64, 3, 8, 8)
print(gb.recalibrate(model, images.split(16)))
