import torch

import gammabeta as gb

norm = gb.BatchNorm2d(3, statistics=gb.statistics.Renorm(r_max=3.0, d_max=5.0))
for _ in range(50):
    norm(2 + torch.randn(4, 3, 8, 8))
x = 2 + torch.randn(2, 3, 8, 8)
print((norm(x) - norm.eval()(x)).abs().max())  # training and evaluation agree
