import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
images = torch.randn(4, 3, 8, 8)
model(images)
folded = gb.fold(model.eval(), images)
print([type(module).__name__ for module in folded.model])
print([str(site) for site in folded.sites], folded.error < folded.tolerance)
