import torch

from gammabeta.benchmarks.contest import Field, Row, contest

x = torch.randn(1000, 1000)
# A contestant takes the number of the call, for its buffers, and returns what is timed.
field = Field({"gammabeta": lambda number: lambda: x.mul(2), "torch": lambda number: lambda: x.add(x)})
row = Row("doubling", (1000, 1000), torch.float32, "contiguous", build=lambda compiled: field)
print(sorted(contest(row, threads=torch.get_num_threads(), rounds=5, compiled=False).seconds))
