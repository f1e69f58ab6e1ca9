import torch
from torch import nn

import gammabeta as gb


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


model = nn.Sequential(block(3, 16), block(16, 16), nn.Flatten(), nn.LazyLinear(2))
images = torch.randn(8, 3, 16, 16)
model(images)
print(gb.recompute(model, images))
