import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
for finding in gb.check(model, torch.randn(16, 4)).findings:
    print(finding.code, finding.severity, finding.where, dict(finding.evidence))
