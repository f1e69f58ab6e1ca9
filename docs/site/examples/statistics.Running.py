import torch

import gammabeta as gb

norm = gb.BatchNorm2d(3, statistics=gb.statistics.Running())
norm.train()(100 + torch.randn(8, 3, 4, 4))
print(norm.running_mean)  # frozen, whatever train() says
