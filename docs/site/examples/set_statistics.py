from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
change = gb.set_statistics(model, gb.statistics.Ghost(4))
print(model[1])
change.undo()
print(model[1])
