import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
gb.adopt(model)
compiled = torch.compile(model, options=gb.compile_options())  # compiles at its first call
print(sorted(gb.compile_options()))
