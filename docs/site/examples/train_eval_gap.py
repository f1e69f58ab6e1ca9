import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
batches = [3 + torch.randn(16, 3, 8, 8) for _ in range(8)]
model(batches[0])
print(gb.train_eval_gap(model.eval(), batches))  # the running statistics have seen one batch
