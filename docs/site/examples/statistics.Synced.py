import torch

import gammabeta as gb

x = torch.randn(8, 3, 4, 4)
norm = gb.BatchNorm2d(3, statistics=gb.statistics.Synced())  # of all processes; here there is one
torch.testing.assert_close(norm(x), gb.BatchNorm2d(3)(x))
