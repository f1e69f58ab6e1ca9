import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
model(torch.randn(2, 3, 8, 8))
groups = gb.parameter_groups(model, weight_decay=0.05)
for group in groups:
    print(group["weight_decay"], [tuple(parameter.shape) for parameter in group["params"]])
torch.optim.AdamW(groups, lr=1e-3)
