import torch

import gammabeta as gb

x, skip, weight, bias = torch.randn(4, 8), torch.randn(4, 8), torch.rand(8), torch.randn(8)
y, total = gb.functional.add_layer_norm(x, skip, (8,), weight, bias)
torch.testing.assert_close(total, x + skip)
torch.testing.assert_close(y, torch.nn.functional.layer_norm(x + skip, (8,), weight, bias))
