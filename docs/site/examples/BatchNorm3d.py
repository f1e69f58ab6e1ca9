import torch

import gammabeta as gb

x, skip = torch.randn(2, 16, 4, 8, 8), torch.randn(2, 16, 4, 8, 8)
norm = gb.BatchNorm3d(16, activation="relu")
y = norm(x, skip)  # relu(norm(x) + skip)

plain = torch.nn.BatchNorm3d(16)
torch.testing.assert_close(y, torch.relu(plain(x) + skip))
print(tuple(y.shape), norm.running_mean[:3])
