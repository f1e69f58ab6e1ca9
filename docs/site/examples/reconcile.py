import os
import tempfile

import torch.distributed as dist
from torch import nn

import gammabeta as gb

# One process stands for many: torchrun --nproc-per-node=2 runs it with two.
store = dist.FileStore(os.path.join(tempfile.mkdtemp(), "store"), 1)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
try:
    print(gb.reconcile(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))))
finally:
    dist.destroy_process_group()
