import torch

import gammabeta as gb

x, weight = torch.randn(4, 8), torch.rand(8)
y = gb.functional.rms_norm(x, (8,), weight)
torch.testing.assert_close(y, torch.nn.functional.rms_norm(x, (8,), weight))
print(tuple(y.shape))
