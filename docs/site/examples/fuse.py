import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
images = torch.randn(4, 3, 8, 8)
before = model.eval()(images)
gb.adopt(model)
print(gb.fuse(model, images))
torch.testing.assert_close(model(images), before)
