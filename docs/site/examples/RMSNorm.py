import torch

import gammabeta as gb

x = torch.randn(8, 5, 32)
norm = gb.RMSNorm(32, eps=1e-6)
y = norm(x)

by_hand = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
torch.testing.assert_close(y, by_hand * norm.weight)
print(y.square().mean(-1)[0])
