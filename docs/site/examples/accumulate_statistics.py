import torch

import gammabeta as gb

model = gb.BatchNorm1d(4)
whole = gb.BatchNorm1d(4)
x = torch.randn(32, 4)
with gb.accumulate_statistics(model):  # the micro-batches of one step
    for part in x.split(8):
        model(part).sum().backward()
whole(x)  # the same samples as one batch
torch.testing.assert_close(model.running_var, whole.running_var)
print(model.num_batches_tracked)
