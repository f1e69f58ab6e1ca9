import torch
from torch import nn

import gammabeta as gb

clients = []
for shift in (0.0, 4.0):
    norm = nn.BatchNorm1d(2, momentum=None)
    norm(shift + torch.randn(500, 2))
    clients.append(norm.state_dict())
merged = gb.merge_statistics(clients, counts=[500, 500])
print(merged["running_mean"], merged["running_var"])  # the variance holds that between the means, 4
