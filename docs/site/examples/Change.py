from torch import nn

import gammabeta as gb

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
with gb.freeze(model, where="1") as change:  # as a context it undoes at the end
    print(change.operation, change.changed, change.left)
print(type(model[1]))
