"""The cases of the page of errors: a question, and code that raises."""

from typing import NamedTuple


class Case(NamedTuple):
    """A question, and code that raises the error it is about."""

    question: str
    code: str


CASES = (
    Case(
        "The last batch of an epoch has one sample",
        "model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))\nmodel(torch.randn(1, 8))",
    ),
    Case(
        "An InstanceNorm after the pooling",
        "model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.InstanceNorm2d(4))\nmodel(torch.randn(2, 4, 6, 6))",
    ),
    Case(
        "SyncBatchNorm does not run on a CPU",
        """
import os, tempfile
import torch.distributed as dist

store = dist.FileStore(os.path.join(tempfile.mkdtemp(), "store"), 1)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
try:
    nn.SyncBatchNorm(4)(torch.randn(2, 4))
finally:
    dist.destroy_process_group()
""",
    ),
    Case(
        "running_mean has another number of elements",
        "nn.BatchNorm2d(4)(torch.randn(2, 5, 3, 3))",
    ),
    Case(
        "The channels are on the last axis",
        "nn.BatchNorm2d(4).eval()(torch.randn(2, 3, 3, 4))",
    ),
    Case(
        "Expected 4D input",
        "nn.BatchNorm2d(4)(torch.randn(2, 4))",
    ),
    Case(
        "A model in 16 bits, an input in 32",
        "nn.BatchNorm2d(4).bfloat16()(torch.randn(2, 4, 2, 2))",
    ),
    Case(
        "Groups that do not divide the channels",
        "nn.GroupNorm(3, 8)",
    ),
    Case(
        "A GroupNorm with channels on another axis",
        "nn.GroupNorm(2, 4)(torch.randn(2, 6, 4))",
    ),
    Case(
        "LayerNorm on images",
        "nn.LayerNorm(4)(torch.randn(2, 4, 3))",
    ),
    Case(
        "BatchNorm under vmap",
        "norm = nn.BatchNorm1d(4)\ntorch.func.vmap(norm)(torch.randn(3, 8, 4))",
    ),
    Case(
        "torch.fx does not trace our layers",
        "model = gb.BatchNorm2d(4)\ntorch.fx.symbolic_trace(nn.Sequential(model))",
    ),
    Case(
        "torch.jit.script does not take our layers",
        "torch.jit.script(gb.LayerNorm(4))",
    ),
    Case(
        "Fusion before quantization does not know our layers",
        """
import torch.ao.quantization

model = nn.Sequential(nn.Conv2d(3, 4, 1), gb.BatchNorm2d(4)).eval()
torch.ao.quantization.fuse_modules(model, [["0", "1"]])
""",
    ),
    Case(
        "A norm gets a list of tensors",
        "nn.LayerNorm(4)([torch.randn(2, 4)])",
    ),
    Case(
        "Images as bytes",
        "nn.BatchNorm2d(3)(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))",
    ),
    Case(
        "Norms without running statistics in evaluation",
        "nn.functional.batch_norm(torch.randn(2, 4), None, None, training=False)",
    ),
    Case(
        "A variable needed for the gradient was modified in place",
        """
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval()
loss = model(torch.randn(5, 4)).sum()
with torch.no_grad():
    model[1].running_mean.copy_(torch.ones(8))  # an average of models, or what DistributedDataParallel does
loss.backward()
""",
    ),
    Case(
        "Inference tensors inside a norm",
        """
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
with torch.inference_mode():
    model[1].running_mean = torch.zeros(8)
model(torch.randn(5, 4))
""",
    ),
    Case(
        "A model without values, on the meta device",
        """
model = nn.Sequential(nn.LayerNorm(4)).to("meta")
model(torch.randn(3, 4))
""",
    ),
    Case(
        "An InstanceNorm with other channels",
        "nn.InstanceNorm2d(4, affine=True)(torch.randn(2, 5, 3, 3))",
    ),
    Case(
        "InstanceNorm of an input without the batch axis",
        "nn.InstanceNorm1d(4)(torch.randn(2, 4, 6, 6))",
    ),
    Case(
        "The weight of layer_norm has another shape",
        "nn.functional.layer_norm(torch.randn(2, 3), (3,), torch.ones(4))",
    ),
    Case(
        "Keys of a state_dict do not fit",
        """
model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
weights = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).state_dict()
model.load_state_dict(weights)
""",
    ),
    Case(
        "Averaging checkpoints",
        """
states = [nn.BatchNorm1d(4).state_dict() for _ in range(3)]
{key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]}
""",
    ),
)
