"""Adopt a small ResNet's norms, and time its training step beside the same network with torch's norms.

    python examples/adopt.py

Both networks take a step on the same batch in turns. The ratio of each pair is free of what else the machine does, as
far as it does that to both.
"""

import statistics
import time

import torch
from resnet import build, optimizer
from torch.nn.functional import cross_entropy

import gammabeta as gb

PAIRS = 9

torch.manual_seed(0)
x, y = torch.randn(16, 3, 64, 64), torch.randint(10, (16,))
networks = {"torch": build(), "gammabeta": build()}
print(gb.adopt(networks["gammabeta"]))

optimizers = {name: optimizer(model) for name, model in networks.items()}


def seconds(name: str) -> float:
    """Take one training step, and return how long it took."""
    start = time.perf_counter()
    optimizers[name].zero_grad()
    cross_entropy(networks[name](x), y).backward()
    optimizers[name].step()
    return time.perf_counter() - start


for name in networks:  # a first step allocates
    seconds(name)
ratios = [seconds("gammabeta") / seconds("torch") for _ in range(PAIRS)]
low, middle, high = statistics.quantiles(ratios, n=4)
print(f"a training step takes {middle:.2f} of the time with torch's norms (quartiles {low:.2f} to {high:.2f})")
