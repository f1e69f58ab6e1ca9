import torch

import gammabeta as gb

x, skip = torch.randn(4, 8, 6, 6), torch.randn(4, 8, 6, 6)
weight, bias = torch.rand(8), torch.randn(8)
y = gb.functional.group_norm(x, 2, weight, bias, residual=skip, activation="relu")
by_torch = torch.nn.functional.group_norm(x, 2, weight, bias)
torch.testing.assert_close(y, torch.relu(by_torch + skip))
print(y.min())
