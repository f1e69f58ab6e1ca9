from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
gb.adopt(model)
with gb.release(model):  # inside, torch's own classes
    print(type(model[1]))
print(type(model[1]))
