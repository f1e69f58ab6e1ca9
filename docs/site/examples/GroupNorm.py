import torch

import gammabeta as gb

x = 3 + torch.randn(4, 16, 8, 8).to(memory_format=torch.channels_last)
y = gb.GroupNorm(4, 16, activation="silu")(x)  # one image is enough: no sample sees another

torch.testing.assert_close(y[:1], gb.GroupNorm(4, 16, activation="silu")(x[:1]))
print(y.is_contiguous(memory_format=torch.channels_last))
