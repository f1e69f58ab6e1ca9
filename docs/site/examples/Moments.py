import torch

import gammabeta as gb

x = 1e4 + torch.randn(6, 3)
a, b = gb.Moments.of(x[:2], axes=0), gb.Moments.of(x[2:], axes=0)
merged = a.merge(b)
print(merged.count, merged.var())
torch.testing.assert_close(merged.var().double(), x.double().var(0, correction=0), rtol=1e-3, atol=0)
