import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
print([finding.code for finding in gb.check(model, torch.randn(16, 4)).findings])
gb.ignore(model[0], "GB301", reason="the bias is part of a checkpoint")
diagnosis = gb.check(model, torch.randn(16, 4))
print([finding.code for finding in diagnosis.findings], diagnosis.ignored[0][1])
