import torch

import gammabeta as gb

x, skip = torch.randn(8, 5, 32), torch.randn(8, 5, 32)
norm = gb.LayerNorm(32, activation="gelu")
y = norm(x, skip)  # gelu(norm(x) + skip)

plain = torch.nn.LayerNorm(32)
torch.testing.assert_close(y, torch.nn.functional.gelu(plain(x) + skip))
print(tuple(y.shape), list(norm.state_dict()) == list(plain.state_dict()))
