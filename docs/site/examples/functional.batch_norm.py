import torch

import gammabeta as gb

x, skip = torch.randn(4, 8, 6, 6), torch.randn(4, 8, 6, 6)
weight, bias = torch.rand(8), torch.randn(8)
mean, var = torch.zeros(8), torch.ones(8)
y = gb.functional.batch_norm(x, mean, var, weight, bias, training=True, residual=skip, activation="relu")
mean, var = torch.zeros(8), torch.ones(8)
by_torch = torch.nn.functional.batch_norm(x, mean, var, weight, bias, training=True)
torch.testing.assert_close(y, torch.relu(by_torch + skip))
print(y.min())
