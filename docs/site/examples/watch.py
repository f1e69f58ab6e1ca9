import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with gb.watch(model, optimizer, every=5) as watch:
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(64, 8)).square().mean().backward()
        optimizer.step()
print(watch.diagnosis())
