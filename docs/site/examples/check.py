import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
print(gb.check(model, torch.randn(16, 3, 8, 8), optimizer=optimizer))
