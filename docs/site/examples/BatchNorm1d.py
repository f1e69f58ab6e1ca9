import torch

import gammabeta as gb

words = torch.randn(4, 16, 20)  # (N, C, L), padded on the right
mask = gb.lengths_to_mask([20, 7, 12, 3], 20)  # (N, L), True where x is real
norm = gb.BatchNorm1d(16)
y = norm(words, mask=mask)

print(y[3, 0, :6])  # zero from position 3 on
torch.testing.assert_close(norm.running_mean, 0.1 * words.movedim(1, 0)[:, mask].mean(1))
