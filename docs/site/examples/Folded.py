import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1)).eval()
folded = gb.fold(model, torch.randn(2, 3, 8, 8))
for site in folded.sites:
    print(site.norm, site.way, site.reason)
