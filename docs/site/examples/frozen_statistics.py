import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
before = model[1].running_mean.clone()
with gb.frozen_statistics(model), torch.no_grad():
    model(100 + torch.randn(16, 4))  # a pass that is not training
print(torch.equal(model[1].running_mean, before))
