import torch

import gammabeta as gb

x = 5 + torch.randn(4, 16, 8, 8)
y = gb.InstanceNorm2d(16, affine=True)(x)
print(y.flatten(2).mean(2).abs().max() < 1e-5)  # the mean of each channel of each sample
