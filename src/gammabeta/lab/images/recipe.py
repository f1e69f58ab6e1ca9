"""What people train image networks with, as settings of `gammabeta.lab.images.training.Training`.

SGD with momentum 0.9, 5 % of the steps to warm up, half a cosine to 0, and weight decay only on weights (He et al.
2015; Goyal et al. 2017; He et al. 2019, Bag of Tricks). Constant rates without momentum are for claims about them.
"""

from typing import Any

RECIPE: dict[str, Any] = {"momentum": 0.9, "warm_up": 0.05, "schedule": "cosine", "decay": 5e-4}
