import torch

import gammabeta as gb

x, skip, weight = torch.randn(4, 8), torch.randn(4, 8), torch.rand(8)
y, total = gb.functional.add_rms_norm(x, skip, (8,), weight)
torch.testing.assert_close(total, x + skip)
torch.testing.assert_close(y, torch.nn.functional.rms_norm(x + skip, (8,), weight))
