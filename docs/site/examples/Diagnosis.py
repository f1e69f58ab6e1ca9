import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, eps=1.0), nn.ReLU(), nn.Linear(8, 2))
diagnosis = gb.check(model, torch.randn(16, 4))
print([finding.code for finding in diagnosis.findings])
print(diagnosis.fix(notes=True))
print(diagnosis.summary())
