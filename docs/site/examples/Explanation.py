import torch
from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(8))
try:
    model(torch.randn(2, 3, 5, 5))
except RuntimeError as error:
    explanation = gb.explain_error(error, model)
    print(explanation.where, "|", explanation.why, "|", explanation.fix)
