import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
images = torch.randn(32, 3, 8, 8)
model(images)
print(gb.convert(model, "group", batches=images.split(8)))
model(images[:1])  # one image is enough now
