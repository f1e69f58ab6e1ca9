import torch

import gammabeta as gb

x, weight, bias = torch.randn(4, 8), torch.rand(8), torch.randn(8)
y = gb.functional.layer_norm(x, (8,), weight, bias, activation="gelu")
torch.testing.assert_close(y, torch.nn.functional.gelu(torch.nn.functional.layer_norm(x, (8,), weight, bias)))
print(tuple(y.shape))
