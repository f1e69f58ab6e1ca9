import torch

import gammabeta as gb

norm = gb.BatchNorm1d(3, statistics=gb.statistics.Batch())  # the default
y = norm(7 + torch.randn(64, 3))
print(y.mean(0).abs().max() < 1e-5)
