import torch

import gammabeta as gb

x = torch.randn(8, 3, 4, 4)
y = gb.BatchNorm2d(3, statistics=gb.statistics.Ghost(4))(x)  # two sub-batches of four
torch.testing.assert_close(y[:4], gb.BatchNorm2d(3)(x[:4]))
