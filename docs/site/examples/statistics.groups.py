import os
import tempfile

import torch.distributed as dist

import gammabeta as gb

# One process stands for many: with eight, groups(4) are the first four and the last four.
store = dist.FileStore(os.path.join(tempfile.mkdtemp(), "store"), 1)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
try:
    norm = gb.BatchNorm2d(8, statistics=gb.statistics.Synced(gb.statistics.groups(1)))
    print(norm)
finally:
    dist.destroy_process_group()
